"""What is observed of a run: what limits it, and the report of Dask."""
