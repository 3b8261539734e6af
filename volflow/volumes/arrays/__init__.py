"""Whatever a user hands over as a volume, Dask arrays above all, opened as a source."""
