"""`map_overlap`: one task per block of a stored array, with Dask's signature."""
