"""Journals of outputs: finished blocks, resuming, completeness."""
