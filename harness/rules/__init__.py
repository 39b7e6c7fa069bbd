"""Elementwise forces that make weights sparse."""
