"""A network whose tensors are divided over processes: who owns what, and getting it from them."""
