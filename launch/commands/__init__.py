"""The commands of `codelength`: flags beside action."""
