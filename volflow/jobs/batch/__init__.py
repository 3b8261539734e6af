"""Batches: one prediction for each of many cases, night after night."""
