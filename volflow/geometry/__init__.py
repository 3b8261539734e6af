"""Pure geometry of blocks, patches, windows and frames: numpy only, no I/O."""
