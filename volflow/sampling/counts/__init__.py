"""How much of each class or weight lies where, counted once and kept."""
