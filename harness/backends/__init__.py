"""How gradients and states travel between ranks; nothing outside this package knows."""
