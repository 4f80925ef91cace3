"""Libraries that are imported only when something needs them."""

from __future__ import annotations

import importlib
from typing import Any

from caffe_lite.errors import DataError


def load(module: str, package: str, purpose: str) -> Any:
    """Return the imported `module`.  Raises `DataError`, which says what needs it and how pip adds `package`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{purpose} needs the library {module}. Install it with: pip install {package}") from error


def opencv() -> Any:
    """Return ``cv2``, which decodes and resizes images."""
    return load("cv2", "opencv-python-headless", "decoding an image")


def h5py() -> Any:
    """Return ``h5py``."""
    return load("h5py", "'caffe-lite[hdf5]'", "HDF5")


def plyvel() -> Any:
    """Return ``plyvel``, which opens a LevelDB."""
    return load("plyvel", "'caffe-lite[leveldb]'", "a LevelDB")
