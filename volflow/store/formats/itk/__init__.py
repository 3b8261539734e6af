"""NRRD and MetaImage: raw voxels behind a header of text, or in a file beside it."""
