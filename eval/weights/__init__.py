"""Sparse quantised weights to bytes and back."""
