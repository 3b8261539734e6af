"""A volume on another grid: on voxels of another size, or on those of another volume."""
