"""Labels given inputs: sets of both from packages and files, and what a receiver must have of them."""
