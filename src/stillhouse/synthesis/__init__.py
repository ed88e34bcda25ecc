"""Making data with a teacher, one file a method."""
