"""Measurements of models, one file each; private helpers start with an underscore."""
