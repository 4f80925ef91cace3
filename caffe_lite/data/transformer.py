"""What ``transform_param`` says: from ``Datum`` messages to batches, ready for the kernels in ``kernels/data.cu``.

The host decodes, chooses windows and packs them; subtracting the mean, mirroring and scaling are one launch.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from caffe_lite.data import optional
from caffe_lite.data.images import decode, planes
from caffe_lite.errors import (
    CaffeError,
    DataError,
    FileAccessError,
    MissingFileError,
    NetError,
)
from caffe_lite.proto import caffe_pb2

logger = logging.getLogger("caffe_lite")

Image = NDArray[Any]  # (channels, height, width), uint8 or float32


@dataclasses.dataclass(frozen=True)
class Batch:
    """Items of one shape, packed.

    Attributes:
        pixels: (num, channels, height, width), uint8 or float32: the windows that were chosen, neither mirrored nor
            scaled yet.
        placement: int32 (num, 3): where each window begins in its image (row, column), and whether to mirror it.
        labels: float32 (num,).
    """

    pixels: NDArray[Any]
    placement: NDArray[np.int32]
    labels: NDArray[np.float32]


class Transformer:
    """Decodes, crops and packs images as a ``TransformationParameter`` says.

    In TRAIN the window and the mirroring of item number i (counted from the start of training) are functions of `seed`
    and i alone, so that a resumed run repeats them.  In TEST the window is the centre; ``mirror`` applies there too.

    *Caffe's quirks.*  The mean is subtracted before scaling.  A mean file covers whole images, so with it every image
    has the mean's shape; without it, images may differ in size as long as each holds the crop.  ``force_color`` and
    ``force_gray`` apply to encoded images only.
    """

    def __init__(self, param: Any, phase: int, seed: int) -> None:
        if param.HasField("mean_file") and param.mean_value:
            raise NetError("transform_param: mean_file and mean_value exclude each other. Remove one of them.")
        if param.force_color and param.force_gray:
            raise NetError("transform_param: force_color and force_gray exclude each other. Remove one of them.")
        self.scale = float(param.scale)
        self.crop_size = int(param.crop_size)
        self.force_color = bool(param.force_color)
        self.force_gray = bool(param.force_gray)
        self.random_crop = bool(self.crop_size) and phase == caffe_pb2.TRAIN
        self.random_mirror = bool(param.mirror)
        self.mean_file = str(param.mean_file)
        self.mean_values = list(param.mean_value)
        self.mean_image = read_mean(self.mean_file) if param.HasField("mean_file") else None
        self._seed = seed
        self._warned = False

    def mean(self, channels: int) -> NDArray[np.float32]:
        """Return what is subtracted from an image: (channels, height, width) from a file, else (channels, 1, 1).

        Raises `NetError` if ``mean_value`` does not fit `channels`.
        """
        if self.mean_image is not None:
            return self.mean_image
        if len(self.mean_values) not in (0, 1, channels):
            raise NetError(
                f"transform_param: {len(self.mean_values)} mean_values for {channels} channels. "
                "Expected one, or one a channel."
            )
        mean = np.zeros((channels, 1, 1), np.float32)
        if self.mean_values:
            mean[:, 0, 0] = self.mean_values
        return mean

    def image(self, datum: Any) -> Image:
        """Return a ``Datum``'s image, decoded if it is encoded.  Raises `DataError`; the caller says which record."""
        if datum.encoded:
            image = self._decode(datum.data)
        else:
            image = unpack(datum)
            if (self.force_color or self.force_gray) and not self._warned:
                self._warned = True
                logger.warning("force_color and force_gray apply to encoded images only.")
        self.check(image)
        return image

    def pack(self, images: Sequence[Image], names: Sequence[str], labels: Sequence[int], first: int) -> Batch:
        """Return the batch of `images`, which are the items from number `first` on; `names` say which (record '7').

        Raises `DataError`, with the name of the item, if an image's shape or type does not go with the first one's.
        """
        placement = np.zeros((len(images), 3), np.int32)
        bits = random_bits(self._seed, first, len(images)) if self.random_crop or self.random_mirror else None
        if bits is not None and self.random_mirror:
            placement[:, 2] = bits[:, 2] & 1
        windows = images
        if self.crop_size:
            placement[:, :2] = self._corners(images, bits)
            size = self.crop_size
            windows = [
                image[:, row : row + size, column : column + size]
                for image, (row, column, _) in zip(images, placement.tolist(), strict=True)
            ]
        self._check_alike(images, windows, names)
        pixels = np.concatenate(windows).reshape(len(windows), *windows[0].shape)
        return Batch(pixels, placement, np.array(labels, np.float32))

    def _corners(self, images: Sequence[Image], bits: NDArray[np.uint64] | None) -> NDArray[np.int64]:
        """Return (num, 2): row and column where each image's window begins."""
        room = np.array([image.shape[1:] for image in images]) - self.crop_size
        if bits is None or not self.random_crop:
            return room // 2
        high = bits[:, :2] >> np.uint64(32)
        return ((high * (room + 1).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)

    def check(self, image: Image) -> None:
        """Raise `DataError` unless `image` holds the crop and has the shape of the mean file."""
        if self.mean_image is not None and image.shape != self.mean_image.shape:
            raise DataError(
                f"the image does not fit the mean file {self.mean_file}. "
                f"Expected {_shape(self.mean_image)}, received {_shape(image)}."
            )
        if self.crop_size > min(image.shape[1:]):
            raise DataError(f"the image is smaller than crop_size {self.crop_size}. Received {_shape(image)}.")

    def _check_alike(self, images: Sequence[Image], windows: Sequence[Image], names: Sequence[str]) -> None:
        """Raise `DataError` unless all windows have one shape and one type."""
        shape, dtype = windows[0].shape, windows[0].dtype
        for image, window, name in zip(images, windows, names, strict=True):
            if window.shape != shape:
                raise DataError(
                    f"{name}: the shape differs from that of {names[0]} in the same batch. Expected "
                    f"{_shape(images[0])}, received {_shape(image)}. Resize the images, set crop_size, or use "
                    "batch_size 1."
                )
            if window.dtype != dtype:
                raise DataError(f"{name} {_kind(window)}, but {names[0]} in the same batch {_kind(windows[0])}.")

    def _decode(self, content: bytes) -> Image:
        """Return an image file's pixels, uint8 (channels, height, width), colours in the order blue, green, red."""
        cv2 = optional.opencv()
        mode = cv2.IMREAD_UNCHANGED
        if self.force_color or self.force_gray:
            mode = cv2.IMREAD_COLOR if self.force_color else cv2.IMREAD_GRAYSCALE
        return planes(decode(content, mode))


def parse(value: bytes) -> Any:
    """Return the ``Datum`` in a record's value.  Raises `DataError` if it is something else."""
    try:
        return caffe_pb2.Datum.FromString(value)
    except DecodeError as error:
        raise DataError("the value is not a Datum. Is this a database that Caffe's tools made?") from error


def unpack(datum: Any) -> Image:
    """Return the image of a ``Datum`` that is not encoded: uint8 from ``data``, float32 from ``float_data``."""
    shape = (datum.channels, datum.height, datum.width)
    elements: NDArray[Any] = np.frombuffer(datum.data, np.uint8)
    if not elements.size:
        elements = np.array(datum.float_data, np.float32)
    if min(shape) <= 0 or not elements.size:
        raise DataError(
            f"the Datum holds no image. Received shape {shape} and {elements.size} elements. "
            "Is this a database that Caffe's tools made?"
        )
    if elements.size != shape[0] * shape[1] * shape[2]:
        raise DataError(f"the Datum's shape is {shape}, but it holds {elements.size} elements.")
    return elements.reshape(shape)


def read_mean(path: str) -> NDArray[np.float32]:
    """Return the mean image of a binaryproto file, (channels, height, width).

    Raises `MissingFileError`, `FileAccessError` or `DataError`.
    """
    from caffe_lite.serialization import blobproto

    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(
            f"mean file {path}: no such file. Expected a binaryproto, as Caffe's compute_image_mean writes it."
        ) from error
    except OSError as error:
        raise FileAccessError(f"mean file {path} cannot be read: {error.strerror}.") from error
    logger.info("Loading mean file from: %s", path)
    try:
        mean = blobproto.to_array(caffe_pb2.BlobProto.FromString(content))
    except CaffeError as error:
        raise DataError(f"mean file {path}: {error}") from error
    except DecodeError as error:
        raise DataError(f"mean file {path} is not a binaryproto file. It begins with {content[:8]!r}.") from error
    if mean.ndim < 3 or not mean.size or mean.size != int(np.prod(mean.shape[-3:])):
        raise DataError(f"mean file {path}: expected one image, received a blob of shape {mean.shape}.")
    return np.ascontiguousarray(mean.reshape(mean.shape[-3:]), np.float32)


def random_bits(seed: int, first: int, count: int) -> NDArray[np.uint64]:
    """Return (count, 3) words of 64 random bits; row i is a function of `seed` and ``first + i`` alone (SplitMix64)."""
    counter = np.arange(3 * first, 3 * (first + count), dtype=np.uint64)
    word = np.uint64(seed & 0xFFFFFFFFFFFFFFFF) + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (word ^ (word >> np.uint64(31))).reshape(count, 3)


def _shape(image: Image) -> str:
    return "x".join(str(size) for size in image.shape)


def _kind(image: Image) -> str:
    return "holds bytes" if image.dtype == np.uint8 else "holds float_data"
