"""Foreign files as sources of volumes, one adapter per format, and exported files."""
