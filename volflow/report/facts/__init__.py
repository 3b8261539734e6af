"""Facts of volumes and runs, as plain values, as text and as HTML."""
