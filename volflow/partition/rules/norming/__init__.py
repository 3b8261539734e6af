"""Norms and reductions: over channels, over the whole volume, and what they note in buffers."""
