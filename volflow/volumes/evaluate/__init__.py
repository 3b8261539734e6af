"""How far a label map agrees with the truth: counts and surface distances, streamed over blocks."""
