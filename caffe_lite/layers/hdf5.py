"""HDF5Data and HDF5Output: batches from the datasets of HDF5 files, and blobs into such a file."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Sequence

import numpy as np

from caffe_lite.blob import Blob
from caffe_lite.data import optional
from caffe_lite.data.hdf5 import Batch, Hdf5Rows
from caffe_lite.data.prefetch import Prefetcher
from caffe_lite.errors import DataError, FileAccessError, NetError, ShapeError
from caffe_lite.layers.base import Layer, register

logger = logging.getLogger("caffe_lite")

READ_AHEAD = 2  # batches


@register("HDF5Data")
class HDF5Data(Layer):
    """Gives the next ``batch_size`` rows of several datasets with each pass, from file to file, over and over.

    Forward: top i = rows of the dataset that has the top's name, float32, (batch_size, ...) with the dataset's further
    axes.  A batch may begin in one file and end in the next.  No backward.

    Fields: ``hdf5_data_param`` {source, batch_size, shuffle}.  ``source`` is a text file with the names of HDF5 files;
    a dataset holds floats or integers of any size, and all datasets of a file have equally many rows.

    *Caffe's quirks.*  There is no transformation, and ``transform_param`` is an error.  ``shuffle`` permutes the files,
    and the rows within each file, but does not mix files.  Caffe reads a file at once; here a large one is streamed.
    """

    exact_bottoms = 0
    min_tops = 1
    runs_python = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.hdf5_data_param
        size = int(param.batch_size)
        if self.param.HasField("transform_param"):
            raise NetError("HDF5Data does not transform data. Remove transform_param.")
        if not size:
            raise NetError("hdf5_data_param: batch_size is missing. Expected 1 or more.")
        if not param.source:
            raise NetError("hdf5_data_param: source is missing. Set it to a file that lists the HDF5 files.")
        logger.info("Loading list of HDF5 filenames from: %s", param.source)
        names = list(self.param.top) or [blob.name for blob in top]
        rows = Hdf5Rows(param.source, names, self.seed if param.shuffle else None)
        logger.info("Number of HDF5 files: %d", len(rows.files))
        self._shapes = [(size, *shape) for shape in rows.shapes]

        def source(passes: int) -> Generator[Batch, None, None]:  # does not hold the layer
            return rows.batches(size, passes)

        self._prefetcher: Prefetcher[Batch] = Prefetcher(source, READ_AHEAD)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        for blob, shape in zip(top, self._shapes, strict=True):
            blob.reshape(shape)

    def prepare(self, bottom: list[Blob], top: list[Blob]) -> None:
        for blob, values in zip(top, self._prefetcher.take(), strict=True):
            self.device.upload(blob.data_buffer, values)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        pass  # `prepare` has filled the tops

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        pass  # there is no bottom to send a gradient to

    def seek(self, passes: int) -> None:
        self._prefetcher.seek(passes)

    def close(self) -> None:
        self._prefetcher.close()


@register("HDF5Output")
class HDF5Output(Layer):
    """Writes its bottoms into an HDF5 file with each pass.

    Forward: appends bottom[0] to the dataset ``data`` and bottom[1] to ``label``, float32, (rows, channels, height,
    width).  No tops, no backward.

    Fields: ``hdf5_output_param`` {file_name}; an existing file is replaced when the net is built.

    *Caffe's quirks.*  The datasets always have four axes; missing ones are 1.  The original aborts at the second pass,
    because the datasets exist by then; here each pass adds its rows.
    """

    exact_bottoms = 2
    exact_tops = 0
    runs_python = True

    DATASETS = ("data", "label")

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._path = str(self.param.hdf5_output_param.file_name)
        if not self._path:
            raise NetError("hdf5_output_param: file_name is missing.")
        self._write("w", [])

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        data, label = bottom
        for blob in bottom:
            if len(blob.shape) > 4:
                raise ShapeError(f"a bottom has too many axes. Expected at most 4, received {blob}. Reshape it.")
        if data.num != label.num:
            raise ShapeError(
                f"the bottoms differ in axis 0, the batch size. Received {data} and {label}. Check the layers that "
                "make them."
            )

    def prepare(self, bottom: list[Blob], top: list[Blob]) -> None:
        logger.info("Saving HDF5 file %s", self._path)
        self._write("a", bottom)
        logger.info("Successfully saved %d rows", bottom[0].num)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        pass  # `prepare` has written the bottoms

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        pass  # a file sends no gradient back

    def _write(self, mode: str, bottom: list[Blob]) -> None:
        """Open the file in `mode` and append each of `bottom`; it is whole and closed after each pass."""
        h5py = optional.h5py()
        try:
            with h5py.File(self._path, mode) as file:
                for name, blob in zip(self.DATASETS, bottom, strict=False):
                    shape = (blob.num, blob.channels, blob.height, blob.width)
                    rows = blob.data.reshape(shape)
                    dataset = file.get(name)
                    if dataset is None:
                        dataset = file.create_dataset(
                            name, (0, *shape[1:]), np.float32, maxshape=(None, *shape[1:]), chunks=_chunk(shape)
                        )
                    elif dataset.shape[1:] != shape[1:]:
                        raise DataError(
                            f"{self._path}: the rows of bottom '{blob.name}' have changed their shape. "
                            f"Expected {dataset.shape[1:]}, as in the passes before, received {shape[1:]}."
                        )
                    dataset.resize(len(dataset) + len(rows), axis=0)
                    dataset[len(dataset) - len(rows) :] = rows
        except OSError as error:
            raise FileAccessError(f"{self._path} cannot be written: {error}.") from error


def _chunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the pieces in which a dataset grows: some rows, about a megabyte, at least one row."""
    row = max(math.prod(shape[1:]), 1)
    return (max(1, min(shape[0], (1 << 18) // row)), *(max(length, 1) for length in shape[1:]))
