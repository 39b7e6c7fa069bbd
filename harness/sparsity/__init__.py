"""Elementwise sparsity rules and pruning."""
