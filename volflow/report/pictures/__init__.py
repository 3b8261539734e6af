"""Pictures of volumes, results and patches, drawn with matplotlib."""
