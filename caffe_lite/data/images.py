"""Image files and the lists that name them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_lite.data import optional
from caffe_lite.errors import DataError, FileAccessError, MissingFileError

Pixels = NDArray[np.uint8]  # (height, width) or (height, width, channels), colours in the order blue, green, red


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A line of an image list: the file's name as written, its label, and the line's number."""

    name: str
    label: int
    line: int


def read_list(source: str) -> list[Entry]:
    """Return the entries of a list with a name, a space and a label on each line; without a label it is 0.

    Names may contain spaces.  Raises `MissingFileError`, `FileAccessError`, or `DataError` for an empty list or a label
    that is no whole number.
    """
    entries = []
    for number, text in enumerate(read_text(source, "list of images").splitlines(), 1):
        line = text.strip()
        name, space, label = line.rpartition(" ")
        if not line:
            continue
        if space and not re.fullmatch(r"[+-]?\d+", label):
            raise DataError(
                f"{source}:{number}: the label is not a whole number. Expected a name, a space and a label, "
                f"received {line!r}."
            )
        entries.append(Entry(name.rstrip(), int(label), number) if space else Entry(line, 0, number))
    if not entries:
        raise DataError(f"{source}: the list names no image. Expected lines of a name, a space and a label.")
    return entries


def read_text(source: str, what: str) -> str:
    """Return a text file's content.  Raises `MissingFileError` or `FileAccessError`."""
    try:
        return Path(source).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{source}: no such {what}. Paths count from the current folder {Path.cwd()}."
        ) from error
    except OSError as error:
        raise FileAccessError(f"{source} cannot be read: {error.strerror}.") from error


def read_bytes(path: str) -> bytes:
    """Return an image file's content.  Raises `MissingFileError` or `FileAccessError`."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such image.") from error
    except OSError as error:
        raise FileAccessError(f"{path} cannot be read: {error.strerror}.") from error


def read(path: str, color: bool = True, height: int = 0, width: int = 0) -> Pixels:
    """Return an image file's pixels, three channels or one, resized if `height` and `width` are given.

    Raises `MissingFileError`, `FileAccessError`, or `DataError` for what is not an image.
    """
    cv2 = optional.opencv()
    try:
        pixels = decode(read_bytes(path), cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
    except DataError as error:
        raise error.located(path) from error.__cause__
    if height and width:
        pixels = cv2.resize(pixels, (width, height))
    return pixels


def decode(content: bytes, mode: int) -> Pixels:
    """Return the pixels of an encoded image; `mode` is one of OpenCV's ``IMREAD`` flags.  Raises `DataError`."""
    cv2 = optional.opencv()
    pixels: Any = cv2.imdecode(np.frombuffer(content, np.uint8), mode) if content else None
    if pixels is None:
        raise DataError(f"the encoded image cannot be decoded. It begins with {content[:8]!r}.")
    if pixels.dtype != np.uint8:
        raise DataError(f"the encoded image has elements of type {pixels.dtype}. Expected uint8.")
    decoded: Pixels = pixels
    return decoded


def planes(pixels: Pixels) -> Pixels:
    """Return `pixels` as (channels, height, width)."""
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
