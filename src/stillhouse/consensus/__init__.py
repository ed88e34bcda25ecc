"""Rules that choose among several teachers' answers without knowing the right one, one file a rule."""
