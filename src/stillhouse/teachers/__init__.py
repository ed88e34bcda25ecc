"""Frozen sources of signals, one file each."""
