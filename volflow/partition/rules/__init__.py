"""Rules of ops: the ranges of the inputs that a range of an output needs, and its computation."""
