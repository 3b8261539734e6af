"""Whole-volume work without a network: convert, write, export, measure, coarsen, map."""
