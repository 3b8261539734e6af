"""What the seams of patches do to a result, measured."""
