"""The rows of HDF5 files that a list names, in the order in which Caffe gives them.

A file whose datasets fit into `IN_MEMORY` is read at once; of a larger one, only the rows that a batch needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caffe_lite.data import optional
from caffe_lite.data.images import read_text
from caffe_lite.errors import CaffeError, DataError, FileAccessError, MissingFileError, suggest

IN_MEMORY = 256 << 20  # bytes, as float32
Rows = range | NDArray[np.int64]
Batch = list[NDArray[np.float32]]


class Hdf5Rows:
    """Row i of each dataset of a file, for all rows of all files, over and over.

    With a `seed` the files' order is drawn anew for each pass over them, and within each file the rows' order, as
    functions of the seed and the number of the pass alone.

    Attributes:
        source: the list of files: names separated by spaces or line ends.
        datasets: the names of the datasets.
        shapes: of each dataset, the shape of one row.
    """

    def __init__(self, source: str, datasets: Sequence[str], seed: int | None) -> None:
        self.source = source
        self.datasets = list(datasets)
        self.files = [
            (name, f"{source}:{line}")
            for line, text in enumerate(read_text(source, "list of HDF5 files").splitlines(), 1)
            for name in text.split()
        ]
        if not self.files:
            raise DataError(f"{source}: the list names no HDF5 file. Expected one name a line.")
        for name, where in self.files:
            if not Path(name).exists():
                raise MissingFileError(f"{where}: {name}: no such HDF5 file.")
        self._seed = seed
        self._counts: dict[int, int] = {}
        self.shapes: list[tuple[int, ...]] = []
        with self._open(next(iter(self._file_order(0)))) as first:
            self.shapes = first.shapes

    def batches(self, size: int, passes: int) -> Generator[Batch, None, None]:
        """Yield batches of `size` rows without end, from the one after `passes` batches on."""
        batch, filled = self._new_batch(size), 0
        for file, rows in self._visits(passes * size):
            done = 0
            while done < len(rows):
                taken = rows[done : done + size - filled]
                file.read(taken, batch, filled)
                done += len(taken)
                filled += len(taken)
                if filled == size:
                    yield batch
                    batch, filled = self._new_batch(size), 0

    def _new_batch(self, size: int) -> Batch:
        return [np.empty((size, *shape), np.float32) for shape in self.shapes]

    def _visits(self, start: int) -> Iterator[tuple[_File, Rows]]:
        """Yield opened files, each with the rows to take from it, from row number `start` of all on."""
        epoch = 0
        if start:
            epoch, start = divmod(start, sum(map(self._count, range(len(self.files)))))
        file: _File | None = None
        try:
            for number in itertools.count(epoch):
                for index in self._file_order(number):
                    if start and start >= self._count(index):
                        start -= self._count(index)
                        continue
                    if file is None or file.index != index:
                        if file is not None:
                            file.close()
                        file = self._open(index)
                    yield file, self._row_order(number, index, file.count)[start:]
                    start = 0
        finally:
            if file is not None:
                file.close()

    def _file_order(self, epoch: int) -> Sequence[int]:
        files = range(len(self.files))
        if self._seed is None or len(files) == 1:
            return files
        shuffled: list[int] = np.random.default_rng([self._seed, epoch]).permutation(len(files)).tolist()
        return shuffled

    def _row_order(self, epoch: int, index: int, count: int) -> Rows:
        if self._seed is None:
            return range(count)
        return np.random.default_rng([self._seed, epoch, index]).permutation(count)

    def _count(self, index: int) -> int:
        """Return how many rows a file has."""
        if index not in self._counts:
            with self._open(index) as file:
                self._counts[index] = file.count
        return self._counts[index]

    def _open(self, index: int) -> _File:
        name, where = self.files[index]
        try:
            return _File(index, name, self.datasets, self.shapes)
        except CaffeError as error:
            raise error.located(where) from error.__cause__


class _File:
    """One file, opened: `count` rows, each of the given `shapes`."""

    def __init__(self, index: int, name: str, datasets: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
        self.index, self.name = index, name
        self._file = _open_file(name)
        try:
            self._datasets = [self._find(dataset) for dataset in datasets]
            self.shapes = [tuple(map(int, dataset.shape[1:])) for dataset in self._datasets]
            self.count = int(self._datasets[0].shape[0])
            self._check(datasets, shapes)
        except BaseException:
            self.close()
            raise
        self._loaded: Batch | None = None

    def read(self, rows: Rows, target: Batch, at: int) -> None:
        """Write `rows` of each dataset into `target`, from row `at` on."""
        if self._loaded is None and 4 * sum(dataset.size for dataset in self._datasets) <= IN_MEMORY:
            self._loaded = [np.empty(dataset.shape, np.float32) for dataset in self._datasets]
            self._read_all(range(self.count), self._loaded, 0)
        if self._loaded is None:
            self._read_all(rows, target, at)
            return
        chosen = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
        for loaded, out in zip(self._loaded, target, strict=True):
            out[at : at + len(rows)] = loaded[chosen]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_all(self, rows: Rows, target: Batch, at: int) -> None:
        """Read from the file; HDF5 converts to float32."""
        for dataset, out in zip(self._datasets, target, strict=True):
            if not out.size:
                continue
            try:
                if isinstance(rows, range):
                    dataset.read_direct(out, np.s_[rows.start : rows.stop], np.s_[at : at + len(rows)])
                    continue
                for position, row in enumerate(rows.tolist(), at):
                    dataset.read_direct(out, np.s_[row : row + 1], np.s_[position : position + 1])
            except OSError as error:
                raise DataError(f"{self.name}: dataset '{dataset.name[1:]}' cannot be read: {error}.") from error

    def _find(self, name: str) -> Any:
        """Return the dataset called `name`, which holds numbers."""
        dataset = self._file.get(name)
        if not isinstance(dataset, optional.h5py().Dataset):
            known = sorted(self._file)
            hint = suggest(name, known) or f"It has {', '.join(known) or 'none'}."
            raise DataError(f"{self.name} has no dataset '{name}', as the layer's top is called. {hint}")
        if dataset.dtype.kind not in "fiu":
            raise DataError(
                f"{self.name}: dataset '{name}' has elements of type {dataset.dtype}. Expected floats or integers."
            )
        if not dataset.shape:
            raise DataError(f"{self.name}: dataset '{name}' is a scalar. Expected one row or more along axis 0.")
        return dataset

    def _check(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
        for name, dataset in zip(names, self._datasets, strict=True):
            if dataset.shape[0] != self.count:
                raise DataError(
                    f"{self.name}: datasets '{names[0]}' and '{name}' differ in axis 0, the number of rows. "
                    f"Received shapes {self._datasets[0].shape} and {dataset.shape}."
                )
        if not self.count:
            raise DataError(f"{self.name}: dataset '{names[0]}' has no rows. Received shape {self._datasets[0].shape}.")
        for name, shape, expected in zip(names, self.shapes, shapes, strict=False):
            if shape != expected:
                raise DataError(
                    f"{self.name}: the rows of dataset '{name}' differ from those of the first file. "
                    f"Expected shape {expected}, received {shape}."
                )


def _open_file(name: str) -> Any:
    """Return an HDF5 file opened for reading.  Raises `FileAccessError` or `DataError`."""
    h5py = optional.h5py()
    try:
        with open(name, "rb") as file:  # noqa: PTH123
            head = file.read(8)
    except OSError as error:
        raise FileAccessError(f"{name} cannot be read: {error.strerror}.") from error
    if not h5py.is_hdf5(name):
        raise DataError(f"{name} is not an HDF5 file. It begins with {head!r}.")
    try:
        return h5py.File(name, "r")
    except OSError as error:
        raise DataError(f"{name} cannot be opened: {error}.") from error
