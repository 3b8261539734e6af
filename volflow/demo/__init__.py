"""The demonstrations: a real brain scan and its score; a CT larger than the memory it is given."""
