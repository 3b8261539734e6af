"""Outputs of one's own loop over patches become volumes."""
