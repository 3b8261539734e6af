"""Rules of ops: the ranges of its inputs that a range of an op depends on, and its computation."""
