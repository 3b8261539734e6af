"""Coarser levels of a volume, each made from the one before it."""
