"""What is said of runs, in tables and pictures."""
