"""TIFF: stacks, folders of planes, ImageJ, OME-TIFF and slides, read and written."""
