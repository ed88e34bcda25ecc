"""Choosing examples out of those there are."""
