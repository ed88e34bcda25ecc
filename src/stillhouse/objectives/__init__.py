"""What a student is asked to minimise, one file a method."""
