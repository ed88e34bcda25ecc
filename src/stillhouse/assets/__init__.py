"""Files that ship with the package: the embedded teacher, the built-in recipes."""
