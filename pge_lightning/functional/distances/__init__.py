"""Distances between data sets as pure functions; lower promises more of a source."""

from pge_lightning.functional.distances.otdd import gaussian_wasserstein, otdd
from pge_lightning.functional.distances.task2vec import task2vec_distance, task2vec_distances, task2vec_embedding

__all__ = ["gaussian_wasserstein", "otdd", "task2vec_distance", "task2vec_distances", "task2vec_embedding"]
