"""ImageData: batches from image files that a list names, prefetched by a thread and transformed on the device."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Generator, Iterable, Iterator

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.data import images
from caffe_lite.data.images import Entry
from caffe_lite.data.transformer import Batch, Transformer
from caffe_lite.errors import CaffeError, DataError, NetError
from caffe_lite.layers.base import register
from caffe_lite.layers.data import TransformedData

logger = logging.getLogger("caffe_lite")


@register("ImageData")
class ImageData(TransformedData):
    """Gives the next ``batch_size`` images of a list with each pass, and starts over at the end.

    Forward: top[0] = (pixel - mean) * scale, (num, channels, height, width), resized to ``new_height`` and
    ``new_width``, then cropped and mirrored as ``transform_param`` says; top[1] the labels, (num,).  No backward.
    The channels are blue, green, red, or with ``is_color: false`` one of grey.

    Fields: ``image_data_param`` {source, batch_size, rand_skip, shuffle, new_height, new_width, is_color, root_folder},
    ``data_param`` {prefetch}, ``transform_param`` (see `Transformer`).  ``source`` is a text file: on each line a path,
    a space and a whole number, the label.

    *Caffe's quirks.*  ``root_folder`` is put in front of the path as it is, so it should end with a slash.  The first
    image of a batch decides its shape, so that images of varying size can be read one at a time.  ``shuffle`` draws a
    new order for each pass over the list.  A label that is no whole number is an error here; Caffe took 0.
    """

    exact_tops = 2

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.image_data_param
        size = int(param.batch_size)
        if not size:
            raise NetError("image_data_param: batch_size is 0. Expected 1 or more.")
        if not param.source:
            raise NetError("image_data_param: source is missing. Set it to a file that lists the images.")
        if bool(param.new_height) != bool(param.new_width):
            raise NetError(
                "image_data_param: new_height and new_width must be set together. "
                f"Received new_height {param.new_height}, new_width {param.new_width}."
            )
        logger.info("Opening file %s", param.source)
        files = Files(
            param.source,
            images.read_list(param.source),
            param.root_folder,
            (param.new_height, param.new_width),
            param.is_color,
            self.seed if param.shuffle else None,
        )
        logger.info("A total of %d images.", len(files.entries))
        skip = self._random_skip(int(param.rand_skip))
        if skip >= len(files.entries):
            raise NetError(
                f"image_data_param: rand_skip {param.rand_skip} skips more than the {len(files.entries)} images."
            )
        transformer = Transformer(self.param.transform_param, self.phase, self.seed)
        first = files.load(itertools.islice(files.cycle(skip), 1), transformer, 0)
        self.begin(
            param.source, transformer, first, size, lambda passes: batches(files, transformer, size, skip, passes)
        )


@dataclasses.dataclass(frozen=True)
class Files:
    """The images of a list, and how to read them.

    Attributes:
        source, entries: the list.
        root_folder: in front of each name.
        size: height and width to resize to, or zeros.
        color: three channels, else one.
        seed: for shuffling; None to keep the list's order.
    """

    source: str
    entries: list[Entry]
    root_folder: str
    size: tuple[int, int]
    color: bool
    seed: int | None

    def cycle(self, start: int) -> Iterator[Entry]:
        """Yield entries without end, from number `start` on, where the second pass over the list goes on counting."""
        count = len(self.entries)
        epoch, start = divmod(start, count)
        for number in itertools.count(epoch):
            order = range(count) if self.seed is None else np.random.default_rng([self.seed, number]).permutation(count)
            for index in order[start:]:
                yield self.entries[index]
            start = 0

    def load(self, entries: Iterable[Entry], transformer: Transformer, first: int) -> Batch:
        """Return the batch of `entries`, the items from number `first` on.

        Raises `MissingFileError`, `FileAccessError` or `DataError`, which name the list's line.
        """
        names, pixels, labels = [], [], []
        for entry in entries:
            try:
                image = images.planes(images.read(self.root_folder + entry.name, self.color, *self.size))
                transformer.check(image)
            except CaffeError as error:
                raise error.located(f"{self.source}:{entry.line}") from error.__cause__
            names.append(f"line {entry.line}, '{entry.name}'")
            pixels.append(image)
            labels.append(entry.label)
        try:
            return transformer.pack(pixels, names, labels, first)
        except DataError as error:
            raise error.located(self.source) from error.__cause__


def batches(
    files: Files, transformer: Transformer, batch_size: int, skip: int, passes: int
) -> Generator[Batch, None, None]:
    """Yield batches without end, from the one after `passes` batches on."""
    first = passes * batch_size
    entries = files.cycle(skip + first)
    while True:
        yield files.load(itertools.islice(entries, batch_size), transformer, first)
        first += batch_size
