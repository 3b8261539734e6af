"""Runs whose driver is a task of the cluster: handed over, driven there, held by a handle."""
