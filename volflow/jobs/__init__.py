"""Runs of runs: batches of cases, pipelines of steps, and records of what ran."""
