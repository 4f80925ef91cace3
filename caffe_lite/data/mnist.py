"""MNIST's idx files, and the database Caffe makes of them.

An idx file is a header of big-endian 32-bit integers (a magic number that ends in the number of dimensions, then the
dimensions) and after it one byte an element.
"""

from __future__ import annotations

import gzip
import logging
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_lite.data import database
from caffe_lite.errors import DataError, FileAccessError, MissingFileError
from caffe_lite.proto import caffe_pb2

logger = logging.getLogger("caffe_lite")

IMAGES = 2051  # three dimensions: item, row, column
LABELS = 2049  # one dimension: item
KINDS = {IMAGES: "an image file", LABELS: "a label file"}
COMMIT_EVERY = 1000  # records


def read_idx(path: str | os.PathLike[str], magic: int) -> NDArray[np.uint8]:
    """Return the content of an idx file, gzipped or not: (items, rows, columns) for `IMAGES`, (items,) for `LABELS`.

    Raises `MissingFileError`, `FileAccessError`, or `DataError` for a wrong magic number or a truncated file.
    """
    content = _read(path)
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    found = int.from_bytes(content[:4], "big")
    if len(content) < 4 or found != magic:
        looks = KINDS.get(found) or ("empty" if not content else f"a file that begins with {content[:4]!r}")
        raise DataError(f"{path}: not {KINDS[magic]} (idx). Expected the magic number {magic}, found {looks}.")
    if len(content) < header:
        raise DataError(f"{path} is truncated within its header. Expected {header} bytes, found {len(content)}.")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) < expected:
        raise DataError(f"{path} is truncated. Expected {expected} bytes for shape {shape}, found {len(content)}.")
    return np.frombuffer(content, np.uint8, expected - header, header).reshape(shape)


def convert(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    target: str | os.PathLike[str],
    overwrite: bool = False,
) -> int:
    """Write the LMDB `target` from two idx files and return the number of its records.

    Keys are eight digits in file order, values are ``Datum`` messages of one channel, as `convert_mnist_data` of the
    original writes them.  Raises what `read_idx` and `database.create` raise, and `DataError` if the files' numbers of
    items differ.
    """
    pixels = read_idx(images, IMAGES)
    classes = read_idx(labels, LABELS)
    if len(pixels) != len(classes):
        raise DataError(f"{images} holds {len(pixels)} images, but {labels} holds {len(classes)} labels.")
    if not pixels.size:
        raise DataError(f"{images} holds no pixels. Its shape is {pixels.shape}.")
    items, rows, columns = map(int, pixels.shape)
    logger.info("A total of %d items.", items)
    logger.info("Rows: %d Cols: %d", rows, columns)
    with database.create(target, overwrite=overwrite) as writer:
        datum: Any = caffe_pb2.Datum(channels=1, height=rows, width=columns)
        for item in range(items):
            datum.data = pixels[item].tobytes()
            datum.label = int(classes[item])
            writer.put(b"%08d" % item, datum.SerializeToString())
            if (item + 1) % COMMIT_EVERY == 0:
                writer.commit()
    logger.info("Processed %d files.", items)
    return items


def _read(path: str | os.PathLike[str]) -> bytes:
    """Return a file's content, unpacked if it is gzipped."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file. Expected an idx file, gzipped or not.") from error
    except OSError as error:
        raise FileAccessError(f"{path} cannot be read: {error.strerror}.") from error
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: the gzip file is truncated or damaged ({error}). Download it again.") from error
