"""The optimizers, and when training stops by itself."""
