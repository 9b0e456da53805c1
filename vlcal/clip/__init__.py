"""CLIP models: thin views on open_clip, loaded from the package, a file or a local cache."""

from vlcal.clip.image import ImageTower
from vlcal.clip.model import CLIP, Preprocess, unit
from vlcal.clip.pretrained import load
from vlcal.clip.text import TextTower
from vlcal.clip.tiny import tiny_clip

__all__ = ["CLIP", "ImageTower", "Preprocess", "TextTower", "load", "tiny_clip", "unit"]
