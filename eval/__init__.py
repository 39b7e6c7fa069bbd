"""The offline (two-part) code, its file, and what it is compared with."""
