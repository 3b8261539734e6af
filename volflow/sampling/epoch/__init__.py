"""The order of an epoch: which patches come from where, and when."""
