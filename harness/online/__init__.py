"""Who predicts in an online code, how predictions are combined, what is learnt again."""
