"""A network over a volume: in patches that are blended, or exactly."""
