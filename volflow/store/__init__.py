"""Volumes on disk: OME-Zarr metadata, shards, foreign sources and the journal of a run."""
