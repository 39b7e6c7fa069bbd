"""Code lengths read off loss curves, of this tool or of others."""
