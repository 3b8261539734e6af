"""Exact partition of networks: which input a range of an output is computed from."""
