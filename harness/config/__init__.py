"""One checked object from YAML and key=value."""
