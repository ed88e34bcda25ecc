"""Small classifiers on vectors: the students of studies that need hundreds of trainings."""
