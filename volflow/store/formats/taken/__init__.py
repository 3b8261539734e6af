"""Sources taken otherwise than their files say."""
