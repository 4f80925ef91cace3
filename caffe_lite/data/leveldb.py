"""LevelDB through plyvel, for `database.open_reader` and `database.create`.

LevelDB cannot open a folder without writing to it: it renews its log and manifest, merges tables and removes old ones.
So a reader opens a temporary folder instead, with links to the tables, which LevelDB never changes once written, and
copies of the few small files it does change.  The database itself may be read-only, and stays as it is, byte for byte.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caffe_lite.data import optional
from caffe_lite.data.database import Reader, Writer, check_lock, some
from caffe_lite.errors import DataError, FileAccessError, MissingFileError

TABLES = (".ldb", ".sst")
_inherited: list[Any] = []  # databases that a forked process got from its parent, which must not be closed here


class LevelDbReader(Reader):
    """Reads a LevelDB folder, as it is when the reader opens it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._opened: _Opened | None = _Opened(source)
        if next(self.read(), None) is None:
            raise DataError(f"{source}: the LevelDB is empty. Expected at least one record.")

    @functools.cached_property
    def records(self) -> int:
        return sum(1 for _ in self._iterate(self._database(), keys=True))

    def read(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        opened = self._database()
        yield from self._iterate(opened, self._key(opened, start) if start else None)

    def close(self) -> None:
        self._opened = None

    def _database(self) -> _Opened:
        if self._opened is None:
            raise DataError(f"{self.source}: this reader was closed. Open the database again.")
        if self._opened.process != os.getpid():
            self._opened = _Opened(self.source)
        return self._opened

    def _key(self, opened: _Opened, number: int) -> bytes:
        """Return the key of record `number`, counted around the end."""
        count = 0
        for count, key in enumerate(self._iterate(opened, keys=True), 1):
            if count > number:
                return bytes(key)
        return self._key(opened, number % count)

    def _iterate(self, opened: _Opened, start: bytes | None = None, keys: bool = False) -> Iterator[Any]:
        """Yield records, or keys alone, from that of key `start` on.  The frame keeps `opened` alive.

        plyvel's other iterator takes a damaged block for the end.
        """
        try:
            with opened.database.raw_iterator(verify_checksums=True, fill_cache=False) as cursor:
                if start is None:
                    cursor.seek_to_first()
                else:
                    cursor.seek(start)
                while cursor.valid():
                    yield cursor.key() if keys else cursor.item()
                    cursor.next()
        except optional.plyvel().Error as error:
            raise DataError(f"{self.source}: the LevelDB cannot be read: {_text(error)}.") from error


class LevelDbWriter(Writer):
    """Fills a new LevelDB in an existing, empty folder."""

    def __init__(self, folder: str) -> None:
        plyvel = optional.plyvel()
        try:
            self._database = plyvel.DB(folder, create_if_missing=True, error_if_exists=True)
        except plyvel.Error as error:
            raise FileAccessError(f"{folder}: a LevelDB cannot be created: {_text(error)}.") from error
        self._batch = self._database.write_batch()

    def put(self, key: bytes, value: bytes) -> None:
        self._batch.put(key, value)

    def commit(self) -> None:
        try:
            self._batch.write()
        except optional.plyvel().Error as error:
            raise FileAccessError(f"the LevelDB cannot be written: {_text(error)}.") from error
        self._batch.clear()

    def close(self) -> None:
        self._database.close()


class _Opened:
    """A database opened in its temporary folder, which goes with the last reference."""

    def __init__(self, source: str) -> None:
        plyvel = optional.plyvel()
        names = _check_folder(source)
        check_lock(source, "LOCK")
        self.process = os.getpid()
        folder = Path(tempfile.mkdtemp(prefix="caffe_lite_leveldb_"))
        try:
            _mirror(Path(source).resolve(), folder, names)
            self.database = plyvel.DB(str(folder), create_if_missing=False)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise FileAccessError(
                f"{source}: the database cannot be read: {error.strerror or _text(error)}."
            ) from error
        except plyvel.Error as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise DataError(f"{source}: the LevelDB cannot be opened: {_text(error)}.") from error
        weakref.finalize(self, _discard, self.database, folder, self.process)


def _discard(database: Any, folder: Path, process: int) -> None:
    if process != os.getpid():
        _inherited.append(database)  # its threads did not come along, so closing it might wait for them
        return
    database.close()
    shutil.rmtree(folder, ignore_errors=True)


def _check_folder(source: str) -> list[str]:
    """Return the names of a LevelDB folder's files, or raise what is wrong with the folder."""
    folder = Path(source)
    if not folder.exists():
        raise MissingFileError(f"{source}: no such database. Create it first, for example with `convert_imageset`.")
    if not folder.is_dir():
        raise DataError(f"{source} is a file. Expected the folder of a LevelDB, which holds CURRENT.")
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except OSError as error:
        raise FileAccessError(f"{source}: the database cannot be read: {error.strerror}.") from error
    if "CURRENT" not in names:
        if "data.mdb" in names:
            raise DataError(
                f"{source} is an LMDB. Write `backend: LMDB` into data_param (without a `backend` Caffe takes LEVELDB)."
            )
        raise DataError(f"{source} is not a LevelDB. Expected CURRENT in it, found {some(set(names)) or 'nothing'}.")
    return names


def _mirror(source: Path, folder: Path, names: list[str]) -> None:
    """Link the tables of `source` into `folder`; copy what LevelDB writes to."""
    for name in names:
        if name.endswith(TABLES):
            (folder / name).symlink_to(source / name)
        elif name not in ("LOCK", "LOG", "LOG.old"):
            shutil.copyfile(source / name, folder / name)


def _text(error: Exception) -> str:
    """Return the message of an exception of plyvel's, which may be bytes."""
    message = error.args[0] if error.args else error
    return message.decode(errors="backslashreplace") if isinstance(message, bytes) else str(message)
