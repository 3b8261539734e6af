"""Pipelines: files of steps, checked whole, run one after the other, skipped where unchanged."""
