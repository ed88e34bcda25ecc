"""Compressing many examples into few that train a student as well."""
