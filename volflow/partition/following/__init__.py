"""What a module does while it is followed: what its calls mean, and what it does beside them."""
