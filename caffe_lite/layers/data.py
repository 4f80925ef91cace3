"""Data: batches from a database, prefetched by a thread and transformed on the device."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.data.database import Reader, open_reader
from caffe_lite.data.prefetch import Prefetcher, Source
from caffe_lite.data.transformer import Batch, Transformer, parse, random_bits
from caffe_lite.errors import DataError, NetError
from caffe_lite.layers.base import Layer, register
from caffe_lite.proto import caffe_pb2

logger = logging.getLogger("caffe_lite")


class TransformedData(Layer):
    """A layer that reads images, and transforms them as ``transform_param`` says (see `Transformer`).

    Batches are prefetched by a thread; subtracting the mean, mirroring and scaling are one launch.  A subclass opens
    its source in `setup` and calls `begin`.
    """

    exact_bottoms = 0
    runs_python = True

    def begin(
        self, source: str, transformer: Transformer, first: Batch, batch_size: int, batches: Source[Batch]
    ) -> None:
        """Take the shape of the `first` image, and be ready to prefetch `batches`.

        `batches` must not hold the layer: the thread would keep it alive.
        """
        self._source, self._transformer = source, transformer
        self._shape: tuple[int, ...] = (batch_size, *first.pixels.shape[1:])
        self._mean = self.device.alloc(0)
        self._pixels = self.device.alloc(0, first.pixels.dtype)
        self._placement = self.device.alloc(3 * batch_size, np.int32)
        self._prefetcher: Prefetcher[Batch] = Prefetcher(batches, int(self.param.data_param.prefetch))
        logger.info("output data size: %s", ",".join(str(size) for size in self._shape))

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape(self._shape)
        for label in top[1:]:
            label.reshape(self._shape[0])
        if self._pixels.size != top[0].count:
            self._pixels = self.device.alloc(top[0].count, self._pixels.dtype)
        mean = self._transformer.mean(self._shape[1])
        if self._mean.size != mean.size:
            self._mean = self.device.alloc(mean.size)
            self.device.upload(self._mean, mean)
        self._mean_shape = mean.shape

    def prepare(self, bottom: list[Blob], top: list[Blob]) -> None:
        batch = self._prefetcher.take()
        if batch.pixels.dtype != self._pixels.dtype:
            raise DataError(
                f"{self._source}: the database mixes records of bytes and of float_data. "
                f"Expected {self._pixels.dtype}, as in its first record, received {batch.pixels.dtype}."
            )
        if batch.pixels.shape != top[0].shape:
            self._shape = batch.pixels.shape
            self.reshape(bottom, top)
        self.device.upload(self._pixels, batch.pixels)
        self.device.upload(self._placement, batch.placement)
        for label in top[1:]:
            self.device.upload(label.data_buffer, batch.labels)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        num, channels, height, width = self._shape
        mean_height, mean_width = self._mean_shape[1:]
        if not (self._transformer.crop_size or self._transformer.random_mirror):
            # Whole images, pixel for pixel: a channel is one long line.
            height, width = 1, height * width
            mean_height, mean_width = 1, mean_height * mean_width
        self.launch(
            "transform_bytes" if self._pixels.dtype == np.uint8 else "transform_floats",
            num * channels * height,
            num * channels * height,
            (num, channels, height, width, mean_height, mean_width),
            self._transformer.scale,
            self._mean,
            self._placement,
            self._pixels,
            top[0].data_buffer,
        )

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        pass  # there is no bottom to send a gradient to

    def seek(self, passes: int) -> None:
        self._prefetcher.seek(passes)

    def close(self) -> None:
        self._prefetcher.close()

    def _random_skip(self, limit: int) -> int:
        """Return how many items ``rand_skip`` leaves out before the first: a random number below `limit`."""
        if not limit:
            return 0
        skip = int(random_bits(self.seed, 0, 1)[0, 2]) % limit
        logger.info("Skipping first %d data points.", skip)
        return skip


@register("Data")
class Data(TransformedData):
    """Gives the next ``batch_size`` records of a database with each pass, and starts over at the end.

    Forward: top[0] = (pixel - mean) * scale, (num, channels, height, width), cropped and mirrored as
    ``transform_param`` says; top[1], if there is one, the labels, (num,).  No backward.

    Fields: ``data_param`` {source, backend, batch_size, rand_skip, prefetch}, ``transform_param`` (see `Transformer`).
    LevelDB needs the library plyvel.

    *Caffe's quirks.*  The default backend is LEVELDB.  The first record of a batch decides its shape, so that images of
    varying size can be read one at a time.  ``rand_skip`` skips up to that many records before the first, as Caffe did
    until it declared the field deprecated.  Unlike in Caffe, reading does not change a LevelDB.
    """

    min_tops = 1
    max_tops = 2

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        data = self.param.data_param
        size = int(data.batch_size)
        if not size:
            raise NetError("data_param: batch_size is missing. Expected 1 or more.")
        if not data.source:
            raise NetError("data_param: source is missing. Set it to the folder of a database.")
        transformer = Transformer(self.param.transform_param, self.phase, self.seed)
        self._reader = reader = open_reader(data.source, caffe_pb2.DataParameter.DB.Name(data.backend))
        first = load(data.source, itertools.islice(reader.read(), 1), transformer, 0)
        skip = self._random_skip(int(data.rand_skip))

        def source(passes: int) -> Generator[Batch, None, None]:
            return batches(reader, transformer, size, skip, passes)

        self.begin(data.source, transformer, first, size, source)

    def close(self) -> None:
        super().close()
        self._reader.close()


def batches(
    reader: Reader, transformer: Transformer, batch_size: int, skip: int, passes: int
) -> Generator[Batch, None, None]:
    """Yield batches without end, from the one after `passes` batches on."""
    first = passes * batch_size
    records = cycle(reader, skip + first)
    while True:
        yield load(reader.source, itertools.islice(records, batch_size), transformer, first)
        first += batch_size


def cycle(reader: Reader, start: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield records without end, from number `start` on."""
    while True:
        records = reader.read(start)
        record = next(records)
        for following in records:
            yield record
            record = following
        logger.info("Restarting data prefetching from start.")
        yield record
        start = 0


def load(source: str, records: Iterable[tuple[bytes, bytes]], transformer: Transformer, first: int) -> Batch:
    """Return the batch of `records`, the items from number `first` on.  Raises `DataError`, which names the record."""
    names, images, labels = [], [], []
    for key, value in records:
        name = f"record '{key.decode(errors='backslashreplace')}'"
        try:
            datum = parse(value)
            images.append(transformer.image(datum))
        except DataError as error:
            raise error.located(f"{source}: {name}") from error.__cause__
        names.append(name)
        labels.append(datum.label)
    try:
        return transformer.pack(images, names, labels, first)
    except DataError as error:
        raise error.located(source) from error.__cause__
