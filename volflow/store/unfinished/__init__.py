"""Outputs that a run is writing: not to be taken for whole."""
