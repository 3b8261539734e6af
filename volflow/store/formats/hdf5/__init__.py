"""HDF5: datasets as ilastik, CREMI, MATLAB, Imaris and others store them, read and written."""
