"""Examples as vectors, computed once and shared: what selectors look at."""
