"""Label maps scored against their truth: one, or many cases."""
