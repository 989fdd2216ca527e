"""Data modules for real data in memory, with few-labels draws, class subsets and disjoint parts."""

from pge_lightning.data.arrays import ArrayDataModule, Arrays
from pge_lightning.data.gray28 import Gray28
from pge_lightning.data.packaged import MlxtendMnist, SklearnDigits
from pge_lightning.data.text_intent import TextIntent
from pge_lightning.data.transforms import TRANSFORMS
from pge_lightning.data.ucr import UCR

__all__ = [
    "TRANSFORMS",
    "UCR",
    "ArrayDataModule",
    "Arrays",
    "Gray28",
    "MlxtendMnist",
    "SklearnDigits",
    "TextIntent",
]
