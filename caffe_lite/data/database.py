"""Databases of records: byte keys in ascending order, each with a value (in Caffe's case a serialized ``Datum``).

`open_reader` and `create` are all that the rest of caffe_lite knows of a database's format; another format is another
`Reader` and `Writer` in `_backend`.  LevelDB is in `leveldb.py`.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import fcntl
import itertools
import logging
import os
import re
import shutil
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb

from caffe_lite.errors import (
    CaffeError,
    DataError,
    FileAccessError,
    MissingFileError,
    UsageError,
)

logger = logging.getLogger("caffe_lite")

LMDB_MAGIC = 0xBEEFC0DE
FIRST_MAP_SIZE = 1 << 26  # doubled whenever it is full
LOCK_PATIENCE = 1.0  # seconds
DATABASE_FILE = re.compile(r"(data|lock)\.mdb|CURRENT|LOCK|LOG(\.old)?|MANIFEST-\d+|\d+\.(ldb|sst|log)")


class Reader(abc.ABC):
    """A database opened for reading.

    Attributes:
        source: the path it was opened with.
    """

    source: str

    @property
    @abc.abstractmethod
    def records(self) -> int:
        """The number of records, at least 1.  A LevelDB does not know it: the first time costs a pass over it."""

    @abc.abstractmethod
    def read(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) of the records from number `start` to the last, in the order of their keys.

        `start` may be past the last record: counting goes on from the first then.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the database, as far as no iterator is still running."""


class Writer(abc.ABC):
    """A new database that is being filled."""

    @abc.abstractmethod
    def put(self, key: bytes, value: bytes) -> None:
        """Add a record to the present transaction."""

    @abc.abstractmethod
    def commit(self) -> None:
        """Write the records put since the last commit."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the database; records that were not committed are lost."""


def open_reader(source: str | os.PathLike[str], backend: str = "LMDB") -> Reader:
    """Open the database folder `source` for reading; `backend` is a name of ``DataParameter.DB``.

    Raises `MissingFileError`, `FileAccessError` (no permission) or `DataError` (locked, empty, truncated, another
    format, a library that is not installed).
    """
    path = os.fspath(source)
    reader = _backend(backend)[0](path)
    logger.info("Opened %s %s", backend.lower(), path)
    return reader


@contextlib.contextmanager
def create(source: str | os.PathLike[str], backend: str = "LMDB", overwrite: bool = False) -> Iterator[Writer]:
    """Give a `Writer` of a new database, which appears at `source` when the block has ended without an error.

    Until then it grows in a folder beside it, so that a process that dies leaves nothing that looks whole.  Raises
    `UsageError` if `source` exists and `overwrite` is false (or it is not a database), `FileAccessError` if it cannot
    be written.
    """
    target = Path(source)
    if os.path.lexists(target):
        _check_replaceable(target, overwrite)
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        with contextlib.closing(_backend(backend)[1](str(partial))) as writer:
            yield writer
            writer.commit()
        _move_into_place(partial, target)
    except CaffeError:
        raise
    except (OSError, lmdb.Error) as error:
        raise FileAccessError(f"{target}: the database cannot be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_replaceable(target: Path, overwrite: bool) -> None:
    """Raise `UsageError` unless `target` is a database that the caller wants replaced."""
    if not overwrite:
        raise UsageError(f"{target} exists already. Remove it, choose another name, or ask to overwrite it.")
    names = {entry.name for entry in target.iterdir()} if target.is_dir() else {target.name}
    others = {name for name in names if not DATABASE_FILE.fullmatch(name)}
    if others or (names and names.isdisjoint({"data.mdb", "CURRENT"})):
        raise UsageError(f"{target} is not a database, so it is not overwritten. It holds {some(others or names)}.")


def _move_into_place(partial: Path, target: Path) -> None:
    """Rename the finished folder; what was there before is removed last."""
    old = target.with_name(f"{target.name}.old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def some(names: set[str]) -> str:
    """Return up to five names, for a message."""
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


# -- LMDB


# LMDB forbids opening an environment twice in a process, so readers share it, by device and inode.  It closes itself
# when the last reader and the last iterator are gone; a forked child goes on using its parent's.
_environments: weakref.WeakValueDictionary[tuple[int, int], lmdb.Environment] = weakref.WeakValueDictionary()
_environments_lock = threading.Lock()


class LmdbReader(Reader):
    """Reads an LMDB folder.  A writer or other readers, here or in other processes, do not disturb it."""

    def __init__(self, source: str) -> None:
        self.source = source
        data = _find_data_file(source)
        key = (data.stat().st_dev, data.stat().st_ino)
        with _environments_lock:
            environment = _environments.get(key)
            if environment is None:
                environment = _environments[key] = _open_environment(source, data)
        self._environment: lmdb.Environment | None = environment
        self._records = int(environment.stat()["entries"])
        if not self._records:
            raise DataError(f"{source}: the LMDB is empty. Expected at least one record.")

    @property
    def records(self) -> int:
        return self._records

    def read(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        if self._environment is None:
            raise DataError(f"{self.source}: this reader was closed. Open the database again.")
        try:
            with self._environment.begin() as transaction, transaction.cursor() as cursor:
                if start % self._records:
                    # Walking the keys alone leaves the values' pages untouched: 60000 records take 7 ms.
                    keys = cursor.iternext(keys=True, values=False)
                    collections.deque(itertools.islice(keys, start % self._records), maxlen=0)
                    if not cursor.next():  # a writer has removed records meanwhile
                        return
                yield from cursor.iternext()
        except lmdb.Error as error:
            raise DataError(f"{self.source}: the LMDB cannot be read: {error}.") from error

    def close(self) -> None:
        self._environment = None


class LmdbWriter(Writer):
    """Fills a new LMDB in an existing, empty folder, and doubles its map whenever that is full."""

    def __init__(self, folder: str, map_size: int = FIRST_MAP_SIZE) -> None:
        self._pending: list[tuple[bytes, bytes]] = []
        self._environment = lmdb.open(folder, map_size=map_size, readahead=False)

    def put(self, key: bytes, value: bytes) -> None:
        self._pending.append((key, value))

    def commit(self) -> None:
        while True:
            try:
                with self._environment.begin(write=True) as transaction, transaction.cursor() as cursor:
                    cursor.putmulti(self._pending)
                self._pending = []
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])

    def close(self) -> None:
        self._environment.close()


def _backend(name: str) -> tuple[Callable[[str], Reader], Callable[[str], Writer]]:
    """Return what opens and what creates a database of the backend `name`."""
    if name == "LMDB":
        return LmdbReader, LmdbWriter
    from caffe_lite.data import leveldb

    return leveldb.LevelDbReader, leveldb.LevelDbWriter


def _find_data_file(source: str) -> Path:
    """Return the ``data.mdb`` of an LMDB folder, or raise what is wrong with the folder."""
    folder = Path(source)
    if not folder.exists():
        raise MissingFileError(
            f"{source}: no such database, seen from {Path.cwd()}. Create it first, for example with `convert_mnist`, "
            "or start in the folder where it is."
        )
    if not folder.is_dir():
        raise DataError(f"{source} is a file. Expected the folder of an LMDB, which holds data.mdb.")
    try:
        names = {entry.name for entry in folder.iterdir()}
        data = folder / "data.mdb"
        if "CURRENT" in names and "data.mdb" not in names:
            raise DataError(f"{source} is a LevelDB. Write `backend: LEVELDB` into data_param, or convert it.")
        if "data.mdb" not in names:
            raise DataError(f"{source} is not an LMDB. Expected data.mdb in it, found {some(names) or 'nothing'}.")
        with data.open("rb") as file:
            header = file.read(24)
    except OSError as error:
        raise FileAccessError(f"{source}: the database cannot be read: {error.strerror}.") from error
    if not header:
        raise DataError(f"{data} is empty (0 bytes). It was never written, or is being written.")
    if len(header) < 24 or struct.unpack_from("=I", header, 16)[0] != LMDB_MAGIC:
        raise DataError(f"{data} is not an LMDB file. It begins with {header[:16]!r}.")
    return data


def _open_environment(source: str, data: Path) -> lmdb.Environment:
    """Open an LMDB for reading, with its lock file where that can be used (then a writer keeps what we read)."""
    check_lock(source, "lock.mdb")
    try:
        environment = _open_for_reading(source)
    except lmdb.Error as locked:
        try:
            environment = _open_for_reading(source, lock=False)
        except lmdb.Error as error:
            raise DataError(f"{source}: the LMDB cannot be opened: {error}.") from error
        logger.warning("%s: its lock file cannot be used (%s). Reading without it.", source, locked)
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = data.stat().st_size
    if size < expected:  # touching a page that is missing would end the process
        environment.close()
        raise DataError(f"{data} is truncated. Expected {expected} bytes, found {size}. Copy or convert it again.")
    return environment


def _open_for_reading(source: str, lock: bool = True) -> lmdb.Environment:
    """Open an LMDB; wait for another thread of this process that is just closing it, a forgotten prefetcher's."""
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            return lmdb.open(source, readonly=True, create=False, lock=lock)
        except lmdb.Error as error:
            if "already open" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def check_lock(source: str, lock_file: str) -> None:
    """Raise `DataError` while another process holds the lock file for itself: opening would wait without end."""
    try:
        file = (Path(source) / lock_file).open("rb")
    except OSError:
        return
    deadline = time.monotonic() + LOCK_PATIENCE
    with file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1)
                return
            except OSError as error:
                # A process that opens the database holds this lock for a moment.
                if time.monotonic() > deadline:
                    raise DataError(f"{source} is locked by another process. Wait for it or end it.") from error
                time.sleep(0.02)
