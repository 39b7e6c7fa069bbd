"""What happens between two stretches of training: weights are removed, dead structure is found."""
