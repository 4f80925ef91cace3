"""WindowData: batches of windows of images, foreground and background, as R-CNN trains on."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_lite.blob import Blob
from caffe_lite.data import images, optional
from caffe_lite.data.prefetch import Prefetcher
from caffe_lite.data.transformer import Transformer, random_bits
from caffe_lite.data.windows import WindowFile, cut, place, read_windows
from caffe_lite.errors import CaffeError, DataError, NetError
from caffe_lite.layers.base import Layer, register

logger = logging.getLogger("caffe_lite")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Warped windows: ``pixels`` uint8 (num, channels, size, size), ``region`` int32 (num, 4), ``labels`` (num,)."""

    pixels: NDArray[np.uint8]
    region: NDArray[np.int32]
    labels: NDArray[np.float32]


@register("WindowData")
class WindowData(Layer):
    """Gives windows of images, drawn at random with replacement: first background, then foreground.

    Forward: top[0] = (pixel - mean) * scale, (num, channels, crop_size, crop_size), 0 where a window lies outside its
    image; top[1] the labels, (num,), 0 for background.  No backward.

    Fields: ``window_data_param`` {source, batch_size, scale, fg_threshold, bg_threshold, fg_fraction, context_pad,
    crop_mode ("warp" or "square"), cache_images, root_folder}, ``transform_param`` {crop_size, mirror, mean_file,
    mean_value}, ``data_param`` {prefetch}.  The window file is described in `read_windows`.

    *Caffe's quirks.*  ``scale`` is that of ``window_data_param``; the one of ``transform_param`` does not count.  The
    mean image's centre square is subtracted wherever the window was, and is not mirrored.  It draws at random in TEST
    too.  ``cache_images`` keeps the files' bytes and decodes them each time.
    """

    exact_bottoms = 0
    exact_tops = 2
    runs_python = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param, transform = self.param.window_data_param, self.param.transform_param
        self._check_fields()
        if transform.scale != 1:
            logger.warning("WindowData takes scale from window_data_param, not from transform_param.")
        windows = read_windows(param.source, param.fg_threshold, param.bg_threshold)
        if windows.channels != 3:
            raise DataError(
                f"{param.source}: the images are read in colour. Expected 3 channels, received {windows.channels}."
            )
        logger.info("Number of images: %d", len(windows.images))
        logger.info("Amount of context padding: %d", param.context_pad)
        logger.info("Crop mode: %s", param.crop_mode)
        sampler = Sampler(windows, param, int(transform.crop_size), bool(transform.mirror), self.seed)
        self._shape = (int(param.batch_size), 3, int(transform.crop_size), int(transform.crop_size))
        self._scale = float(param.scale)
        self._pixels = self.device.alloc(int(np.prod(self._shape)), np.uint8)
        self._region = self.device.alloc(4 * self._shape[0], np.int32)
        self._set_mean(Transformer(transform, self.phase, self.seed).mean(3))
        self._prefetcher: Prefetcher[Batch] = Prefetcher(sampler.batches, int(self.param.data_param.prefetch))
        logger.info("output data size: %s", ",".join(str(size) for size in self._shape))

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape(self._shape)
        top[1].reshape(self._shape[0])

    def prepare(self, bottom: list[Blob], top: list[Blob]) -> None:
        batch = self._prefetcher.take()
        self.device.upload(self._pixels, batch.pixels)
        self.device.upload(self._region, batch.region)
        self.device.upload(top[1].data_buffer, batch.labels)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        num, channels, size, _ = self._shape
        rows = num * channels * size
        shape = (num, channels, size, *self._mean_shape[1:], self._offset)
        self.launch(
            "transform_windows",
            rows,
            rows,
            shape,
            self._scale,
            self._mean,
            self._region,
            self._pixels,
            top[0].data_buffer,
        )

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        pass  # there is no bottom to send a gradient to

    def seek(self, passes: int) -> None:
        self._prefetcher.seek(passes)

    def close(self) -> None:
        self._prefetcher.close()

    def _check_fields(self) -> None:
        param, crop_size = self.param.window_data_param, self.param.transform_param.crop_size
        if not param.batch_size:
            raise NetError("window_data_param: batch_size is missing. Expected 1 or more.")
        if not param.source:
            raise NetError("window_data_param: source is missing. Set it to a file of windows.")
        if not crop_size:
            raise NetError("transform_param: crop_size is missing. Windows are warped to that size.")
        if param.crop_mode not in ("warp", "square"):
            raise NetError(f"window_data_param: crop_mode must be 'warp' or 'square'. Received '{param.crop_mode}'.")
        if 2 * param.context_pad >= crop_size:
            raise NetError(
                f"window_data_param: twice context_pad {param.context_pad} must be smaller than crop_size {crop_size}."
            )
        if not 0 <= param.fg_fraction <= 1:
            raise NetError(f"window_data_param: fg_fraction must be from 0 to 1. Received {param.fg_fraction}.")

    def _set_mean(self, mean: NDArray[np.float32]) -> None:
        size = self._shape[2]
        self._mean_shape = mean.shape
        self._offset = 0
        if mean.shape[1:] != (1, 1):
            self._offset = (mean.shape[2] - size) // 2
            if mean.shape[0] != 3 or self._offset < 0 or self._offset + size > mean.shape[1]:
                raise NetError(
                    f"mean file {self.param.transform_param.mean_file}: expected 3 channels, {size} x {size} "
                    f"or larger, received {'x'.join(map(str, mean.shape))}."
                )
        self._mean = self.device.alloc(mean.size)
        self.device.upload(self._mean, mean)


class Sampler:
    """Draws windows and cuts them out.  Item i, counted from the start, is a function of the seed and i alone."""

    def __init__(self, windows: WindowFile, param: Any, crop_size: int, mirror: bool, seed: int) -> None:
        self._windows = windows
        self._size, self._mirror, self._seed = crop_size, mirror, seed
        self._root = str(param.root_folder)
        self._batch_size = int(param.batch_size)
        self._context_pad = int(param.context_pad)
        self._square = param.crop_mode == "square"
        foreground = int(np.float32(self._batch_size) * np.float32(param.fg_fraction))
        self._kinds = [windows.background] * (self._batch_size - foreground) + [windows.foreground] * foreground
        for what, drawn in (("background", windows.background), ("foreground", windows.foreground)):
            if not len(drawn) and any(kind is drawn for kind in self._kinds):
                raise DataError(
                    f"{windows.source}: no window is {what}. Expected one or more with an overlap "
                    + ("below bg_threshold" if what == "background" else "of fg_threshold or more")
                    + f": {param.bg_threshold if what == 'background' else param.fg_threshold:g}."
                )
        self._cache = {}
        if param.cache_images:
            self._cache = {name: images.read_bytes(self._root + name) for name in windows.images}

    def batches(self, passes: int) -> Generator[Batch, None, None]:
        """Yield batches without end, from the one after `passes` batches on."""
        for first in itertools.count(passes * self._batch_size, self._batch_size):
            yield self._batch(random_bits(self._seed, first, self._batch_size))

    def _batch(self, bits: NDArray[np.uint64]) -> Batch:
        num, size = self._batch_size, self._size
        batch = Batch(np.zeros((num, 3, size, size), np.uint8), np.zeros((num, 4), np.int32), np.zeros(num, np.float32))
        for item, (kind, (draw, flip, _)) in enumerate(zip(self._kinds, bits.tolist(), strict=True)):
            number, label, *box, line = kind[draw % len(kind)].tolist()
            mirror = self._mirror and bool(flip & 1)
            name = self._windows.images[number]
            try:
                pixels = self._read(name)
                at = place(tuple(box), pixels.shape[:2], size, self._context_pad, self._square, mirror)
                cut(pixels, at, mirror, batch.pixels[item])
            except CaffeError as error:
                raise error.located(f"{self._windows.source}:{line}: window of {name}") from error.__cause__
            batch.region[item] = at.top, at.top + at.height, at.left, at.left + at.width
            batch.labels[item] = label
        return batch

    def _read(self, name: str) -> images.Pixels:
        if name in self._cache:
            return images.decode(self._cache[name], optional.opencv().IMREAD_COLOR)
        return images.read(self._root + name)
