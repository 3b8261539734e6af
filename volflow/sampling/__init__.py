"""Patch samplers, the streaming dataset, augmentation."""
