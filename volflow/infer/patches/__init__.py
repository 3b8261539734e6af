"""Inference in overlapping patches, blended on one global grid."""
