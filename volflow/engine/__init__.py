"""The driver: runs plans in bounded windows on Dask, in this process or on a cluster."""
