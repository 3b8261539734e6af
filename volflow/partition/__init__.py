"""Exact partition of networks: the range of the input that a range of the output needs."""
