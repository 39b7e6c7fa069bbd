"""What predicts the next symbol of a sequence."""
