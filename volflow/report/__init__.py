"""What people look at: previews, facts of a volume, the state of a run."""
