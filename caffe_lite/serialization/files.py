"""Reading and writing files so that an error says what is wrong and a failed write leaves nothing behind."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from caffe_lite.errors import FileAccessError, MissingFileError

PathLike = str | os.PathLike[str]
Write = Callable[[PathLike, bytes], None]

# What a file begins with when it is none of Caffe's: offset, bytes, description.
MAGIC = (
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"version https://git-lfs", "a Git LFS pointer that stands for the real file; `git lfs pull` fetches that one"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"PK\x03\x04", "a zip archive (an .npz or a PyTorch file is one, too); unpack it first"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"\x93NUMPY", "a numpy array (.npy)"),
    (0, b"\xff\xfe", "text in UTF-16; save it as UTF-8"),
    (0, b"\xfe\xff", "text in UTF-16; save it as UTF-8"),
    (16, b"\xde\xc0\xef\xbe", "the data file of an LMDB database"),
)
MARKUP = ((b"<?xml", "an XML file"), (b"<", "an HTML page, as a failed download leaves it"))
HEAD_SIZE = 512


def read_bytes(path: PathLike) -> bytes:
    """Return the content of the file at `path`.

    Raises:
        MissingFileError: there is nothing at `path`.
        FileAccessError: `path` is a folder, or must not be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{os.fspath(path)}: no such file. Check the path; it is relative to the current folder, {Path.cwd()}."
        ) from error
    except IsADirectoryError as error:
        kind = "an LMDB database" if (Path(path) / "data.mdb").exists() else "a folder"
        raise FileAccessError(f"{os.fspath(path)} is {kind}. Expected a file.") from error
    except OSError as error:
        raise FileAccessError(f"{os.fspath(path)}: cannot be read: {error.strerror}.") from error


def foreign(data: bytes) -> str | None:
    """Return what `data` is if its beginning tells that no file of Caffe's begins so, for example "a PNG image"."""
    for offset, magic, description in MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return description
    head = data[:HEAD_SIZE].removeprefix(codecs.BOM_UTF8).lstrip()
    if not head:
        return "an empty file"
    return next((description for tag, description in MARKUP if head.startswith(tag)), None)


def looks_like(data: bytes) -> str | None:
    """Return what `data` is if its beginning tells that it is not a protobuf message: something foreign, or text."""
    description = foreign(data)
    text = None if description else _as_text(data[:HEAD_SIZE])
    if text is None:
        return description
    if re.search(r"^\s*\w+\s*[:{]", text, re.MULTILINE):
        return "a text prototxt"
    return "a text file"


def _as_text(head: bytes) -> str | None:
    """Return `head` as text, or None if it holds control characters or is not UTF-8."""
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in head):
        return None
    # A character of several bytes may be cut where the head ends.
    for cut in range(4):
        with contextlib.suppress(UnicodeDecodeError):
            return head[: len(head) - cut].decode()
    return None


def write_atomically(path: PathLike, data: bytes) -> None:
    """Make `data` the content of the file at `path`, all of it or nothing.

    The data goes to a temporary file in the same folder first and reaches the disk before it takes the place of what
    was there, so neither a full disk nor a crash leaves half a file.  A symbolic link stays one; its target is written.

    Raises:
        FileAccessError: the file cannot be written.  What was at `path` is whole, and no temporary file is left.
    """
    with together() as write:
        write(path, data)


@contextlib.contextmanager
def together() -> Iterator[Write]:
    """Give a `write_atomically` whose files take their places when the block has ended: all of them or none.

    Raises `FileAccessError`, and whatever the block raises; the old files are whole then.
    """
    staged: list[tuple[PathLike, Path, Path]] = []  # path, target, temporary file

    def write(path: PathLike, data: bytes) -> None:
        target = Path(path).resolve()
        with _explained(path, target):
            if target.exists() and not target.is_file():
                raise OSError(errno.EINVAL, "it is a folder or a device, not a file")
            temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
            with temporary.open("xb") as file:
                staged.append((path, target, temporary))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    try:
        yield write
        for path, target, temporary in staged:
            with _explained(path, target):
                temporary.replace(target)
    finally:
        for _, _, temporary in staged:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def _explained(path: PathLike, target: Path) -> Iterator[None]:
    """Turn an `OSError` from the `with` block into a `FileAccessError` that says why `path` cannot be written."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileAccessError(
            f"{os.fspath(path)}: cannot be written: the folder '{Path(path).parent}' does not exist."
        ) from error
    except OSError as error:
        kept = " The old file is unchanged." if target.is_file() else ""
        raise FileAccessError(f"{os.fspath(path)}: cannot be written: {error.strerror}.{kept}") from error


def check_writable(prefix: PathLike) -> None:
    """Make sure, before hours of training, that files whose names begin with `prefix` can be written.

    A file is created and removed: permissions alone do not tell of a read-only disk.

    Raises:
        FileAccessError: with the reason.
    """
    prefix = os.fspath(prefix)
    where = f"snapshot prefix '{prefix}' cannot be written"
    probe = Path(f"{prefix}_{secrets.token_hex(4)}.tmp")
    folder = probe.parent
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except FileNotFoundError as error:
        advice = f"the folder '{folder}' does not exist. Create it with `mkdir -p {folder}`."
        if folder.is_dir():  # as /proc, which takes no files
            advice = f"the folder '{folder}' takes no new files. Choose another prefix."
        raise FileAccessError(f"{where}: {advice}") from error
    except NotADirectoryError as error:
        raise FileAccessError(f"{where}: '{folder}' is not a folder. Choose another prefix.") from error
    except OSError as error:
        raise FileAccessError(
            f"{where}: {error.strerror} in folder '{folder}'. Choose a folder that you may write to."
        ) from error
