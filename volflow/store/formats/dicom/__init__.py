"""DICOM: series of slices and segmentations as sources, and segmentations that are written."""
