"""Volumes in interactive viewers: their appearance, a link, a server, a script."""
