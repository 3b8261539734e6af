"""The driver: plans run in bounded windows on Dask, in this process or on a cluster."""
