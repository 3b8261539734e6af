"""Random changes of patches, each a pure function of its key."""
