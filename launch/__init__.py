"""The `codelength` command."""
