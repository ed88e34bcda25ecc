"""Contracts: what every component of a family must keep, run over whatever the registry finds."""
