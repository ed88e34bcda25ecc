"""Worked solutions read: their numbers, their equations, their steps."""
