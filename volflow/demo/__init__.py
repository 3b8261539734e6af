"""The demonstration: a real brain scan, a small network trained on part of it, and its score."""
