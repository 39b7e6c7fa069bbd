"""Studies of what learns best: which examples count at which step, and in which order they come"""
