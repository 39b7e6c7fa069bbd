"""A run's two-part code: its archive, its ideal length, and the compressors beside it."""
