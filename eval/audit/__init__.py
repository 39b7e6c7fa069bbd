"""Which settings of a machine keep every bit."""
