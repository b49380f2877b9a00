"""Source readers: one small module per kind of source."""
