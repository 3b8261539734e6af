"""Training: what a network's scores are worth, and the steps that make it better."""
