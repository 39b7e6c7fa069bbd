"""Training that records the code length of every token (the online code)."""
