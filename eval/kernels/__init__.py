"""Compiled loops of prediction, token by token."""
