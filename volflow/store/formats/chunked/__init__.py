"""N5 and Neuroglancer's precomputed volumes: folders of chunks, read by tensorstore."""
