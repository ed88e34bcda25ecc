"""A student cut out of its teacher: what can be kept, what is important, and the cut itself."""
