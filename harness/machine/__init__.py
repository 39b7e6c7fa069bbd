"""What this process runs on and with whom: hardware, ranks, memory, signals, compiled functions."""
