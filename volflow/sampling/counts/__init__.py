"""Classes and weights per cell of a volume, counted once and kept."""
