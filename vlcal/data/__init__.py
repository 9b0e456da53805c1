"""Labelled images, class names and word lists: from files to batches."""

from vlcal.data.cache import cache_folder, cached_features, feature_key, file_list_hash
from vlcal.data.features import read_arrays, read_features
from vlcal.data.fewshot import (
    base_new,
    few_shot,
    few_shot_dataset,
    load_few_shot,
    save_few_shot,
    split_hash,
)
from vlcal.data.folders import image_folder, read_imagenet, read_imagenet_shift
from vlcal.data.icons import icons
from vlcal.data.items import Dataset, ImageList, Item, Split, loader
from vlcal.data.readers import read_fgvc, read_split_json
from vlcal.data.registry import DATASETS, Row, open_dataset
from vlcal.data.vocabulary import nouns

__all__ = [
    "DATASETS",
    "Dataset",
    "ImageList",
    "Item",
    "Row",
    "Split",
    "base_new",
    "cache_folder",
    "cached_features",
    "feature_key",
    "few_shot",
    "few_shot_dataset",
    "file_list_hash",
    "icons",
    "image_folder",
    "load_few_shot",
    "loader",
    "nouns",
    "open_dataset",
    "read_arrays",
    "read_features",
    "read_fgvc",
    "read_imagenet",
    "read_imagenet_shift",
    "read_split_json",
    "save_few_shot",
    "split_hash",
]
