"""Passes over a network's graph out of core: what they cost, which are cheapest, what is kept."""
