"""Judging reasoning traces without a gold answer, one file a signal."""
