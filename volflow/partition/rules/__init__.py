"""Which range of its inputs a range of each op reads, and how it is computed."""
