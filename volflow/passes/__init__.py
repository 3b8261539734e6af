"""Out-of-core passes over a network's graph: cost, choice, execution, stored activations."""
