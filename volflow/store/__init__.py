"""Volumes on disk: OME-Zarr metadata, shards, foreign formats as sources, the journal of a run."""
