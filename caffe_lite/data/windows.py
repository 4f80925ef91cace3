"""Windows of images: the file that lists them, and cutting them out as R-CNN does."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from caffe_lite.data import optional
from caffe_lite.data.images import Pixels, read_text
from caffe_lite.errors import DataError

Number = TypeVar("Number", int, float)


@dataclasses.dataclass(frozen=True)
class WindowFile:
    """What a window file holds.

    Attributes:
        source: its path.
        images: the path of each image.
        channels: of the last image, as the file says.
        foreground, background: (windows, 7): image, label, x1, y1, x2, y2 and the line in the file.
    """

    source: str
    images: list[str]
    channels: int
    foreground: NDArray[np.int32]
    background: NDArray[np.int32]


def read_windows(source: str, fg_threshold: float, bg_threshold: float) -> WindowFile:
    """Read a window file.

    For each image: ``# number``, path, channels, height, width, the number of windows, and for each of these a line of
    class, overlap, x1, y1, x2, y2.  Windows that overlap an object by `fg_threshold` or more are foreground; others
    below `bg_threshold` are background, of label 0.  Raises `MissingFileError`, `FileAccessError` or `DataError`.
    """
    words = _Words(source)
    images: list[str] = []
    channels = 0
    foreground, background = array.array("i"), array.array("i")
    for mark in words:
        if mark != "#":
            raise words.error(f"expected '# ' and the number of an image, received '{mark}'")
        number = words.number(int, "the number of the image")
        if number != len(images):
            raise words.error(f"the images must be numbered 0, 1, 2, ... Expected {len(images)}, received {number}")
        images.append(words.word("the image's path"))
        channels = words.number(int, "the image's channels")
        words.number(int, "the image's height")
        words.number(int, "the image's width")
        for _ in range(words.number(int, "the number of windows")):
            label = words.number(int, "a window's class")
            overlap = np.float32(words.number(float, "a window's overlap"))
            box = [words.number(int, f"a window's {name}") for name in ("x1", "y1", "x2", "y2")]
            if overlap >= np.float32(fg_threshold):
                if label <= 0:
                    raise words.error(f"a foreground window must have a class of 1 or more. Received {label}")
                foreground.extend((number, label, *box, words.line))
            elif overlap < np.float32(bg_threshold):
                background.extend((number, 0, *box, words.line))
    if not images:
        raise DataError(f"{source}: the window file is empty.")
    tables = (np.array(windows, np.int32).reshape(-1, 7) for windows in (foreground, background))
    return WindowFile(source, images, channels, *tables)


class _Words:
    """The words of a file, and the `line` of the last one."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.line = 0
        self._words = self._split(read_text(source, "window file"))

    def __iter__(self) -> Iterator[str]:
        return self._words

    def word(self, what: str) -> str:
        """Return the next word, which is `what`."""
        found = next(self._words, None)
        if found is None:
            raise self.error(f"the file ends where {what} should be")
        return found

    def number(self, kind: type[Number], what: str) -> Number:
        """Return the next word as a number."""
        word = self.word(what)
        try:
            return kind(word)
        except ValueError:
            raise self.error(f"{what} is not a number of the right kind. Received '{word}'") from None

    def error(self, sentence: str) -> DataError:
        """Return an error at the present line."""
        return DataError(f"{self._source}:{self.line}: {sentence}.")

    def _split(self, text: str) -> Iterator[str]:
        for self.line, line in enumerate(text.splitlines(), 1):
            yield from line.split()


@dataclasses.dataclass(frozen=True)
class Placement:
    """Which part of an image becomes which part of the crop.

    Attributes:
        x1, y1, x2, y2: the part of the image, both ends included.
        left, top, width, height: the part of the crop; around it the crop is empty.
    """

    x1: int
    y1: int
    x2: int
    y2: int
    left: int
    top: int
    width: int
    height: int


def place(
    box: tuple[int, int, int, int],
    image: tuple[int, int],
    crop_size: int,
    context_pad: int = 0,
    square: bool = False,
    mirror: bool = False,
) -> Placement:
    """Return how the window `box` (x1, y1, x2, y2) of an image of (height, width) is warped to the crop.

    With `context_pad` the window grows, so that after warping there is that much of its surroundings on each side; with
    `square` its shorter side grows to the longer one.  What lies outside the image stays empty.  Computed in float32 as
    in the original.  Raises `DataError` for a window outside the image.
    """
    if not (context_pad or square):
        x1, y1, x2, y2 = box
        _check(box, image, x1 <= x2 and y1 <= y2 and x1 >= 0 and y1 >= 0 and x2 < image[1] and y2 < image[0])
        return Placement(*box, 0, 0, crop_size, crop_size)
    scale = np.float32(crop_size) / np.float32(crop_size - 2 * context_pad)
    half_x, half_y = (np.float32(box[2 + axis] - box[axis] + 1) / np.float32(2) for axis in (0, 1))
    center_x, center_y = np.float32(box[0]) + half_x, np.float32(box[1]) + half_y
    if square:
        half_x = half_y = max(half_x, half_y)
    x = _grow(center_x, half_x * scale, image[1], crop_size)
    y = _grow(center_y, half_y * scale, image[0], crop_size)
    _check(box, image, x[0] <= x[1] and y[0] <= y[1])
    left, top = x[3] if mirror else x[2], y[2]
    width, height = min(x[4], crop_size - left), min(y[4], crop_size - top)
    _check(box, image, width > 0 and height > 0)
    return Placement(x[0], y[0], x[1], y[1], left, top, width, height)


def cut(image: Pixels, placement: Placement, mirror: bool, target: NDArray[np.uint8]) -> None:
    """Warp a part of `image` to its place in `target`, (channels, crop_size, crop_size)."""
    cv2: Any = optional.opencv()
    part = image[placement.y1 : placement.y2 + 1, placement.x1 : placement.x2 + 1]
    warped = cv2.resize(part, (placement.width, placement.height), interpolation=cv2.INTER_LINEAR)
    if mirror:
        warped = warped[:, ::-1]
    rows = slice(placement.top, placement.top + placement.height)
    columns = slice(placement.left, placement.left + placement.width)
    target[:, rows, columns] = warped.transpose(2, 0, 1)


def _grow(center: np.float32, half: np.float32, length: int, crop_size: int) -> tuple[int, int, int, int, int]:
    """Return, along one axis, the ends of the grown window within the image, and in the crop what is empty before and
    after it, and its length."""
    first, last = _round(center - half), _round(center + half)
    scale = np.float32(crop_size) / np.float32(last - first + 1)
    before, after = max(0, -first), max(0, last - length + 1)
    first, last = first + before, last - after
    empty = (_round(np.float32(before) * scale), _round(np.float32(after) * scale))
    return first, last, *empty, _round(np.float32(last - first + 1) * scale)


def _round(value: Any) -> int:
    """Round half away from zero, as C does."""
    return int(np.copysign(np.floor(np.abs(np.float64(value)) + 0.5), value))


def _check(box: tuple[int, int, int, int], image: tuple[int, int], good: bool) -> None:
    if not good:
        raise DataError(
            f"the window does not lie within the image. Expected x1 <= x2 < {image[1]} and y1 <= y2 < {image[0]}, "
            f"received x1 {box[0]}, y1 {box[1]}, x2 {box[2]}, y2 {box[3]}."
        )
