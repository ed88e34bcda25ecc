"""Recipes that answer one question without training a student, one file a study."""
