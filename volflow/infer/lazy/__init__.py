"""Inference as a Dask array."""
