"""Symbols, real numbers and sections to bytes and back; knows no model."""
