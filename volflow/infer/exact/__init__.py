"""Exact inference: passes over the volume, equal to the network run on it whole."""
