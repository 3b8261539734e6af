"""Measure what the seams of patches do to a result."""
