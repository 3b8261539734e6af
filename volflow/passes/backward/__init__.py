"""Passes of training: forward to a head, and backward in reverse, on disk and on any cluster."""
