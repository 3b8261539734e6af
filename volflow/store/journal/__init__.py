"""What is done of an output: its journal, and what must be complete to be read."""
