"""Putting voxels on another grid: pure functions of boxes."""
