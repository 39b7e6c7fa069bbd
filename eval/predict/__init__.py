"""Probabilities that both ends of a code compute alike."""
