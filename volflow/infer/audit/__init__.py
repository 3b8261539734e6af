"""Predictions computed anew from what their journals record, and compared with what is stored."""
