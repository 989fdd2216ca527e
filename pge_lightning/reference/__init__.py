"""Small encoders and a classifier for tests, examples and first steps; the library works with any module."""

from pge_lightning.reference.classifier import Classifier
from pge_lightning.reference.encoders import ImageEncoder, SeriesEncoder, TextEncoder

__all__ = ["Classifier", "ImageEncoder", "SeriesEncoder", "TextEncoder"]
