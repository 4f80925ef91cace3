"""Reading and writing files so that an error says what is wrong and a failed write leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from pathlib import Path

from caffe_lite.errors import FileAccessError, MissingFileError

PathLike = str | os.PathLike[str]

# What a file begins with when it is none of Caffe's: offset, bytes, description.
MAGIC = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"version https://git-lfs", "a Git LFS pointer that stands for the real file; `git lfs pull` fetches that one"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"PK\x03\x04", "a zip archive (an .npz or a PyTorch file is one, too)"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"\x93NUMPY", "a numpy array (.npy)"),
    (16, b"\xde\xc0\xef\xbe", "the data file of an LMDB database"),
)
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


def looks_like(data: bytes) -> str | None:
    """Return what `data` is if its beginning tells that it is not a protobuf message, for example "a PNG image"."""
    if not data:
        return "an empty file"
    for offset, magic, description in MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return description
    text = _as_text(data[:HEAD_SIZE])
    if text is None:
        return None
    if text.lstrip().startswith("<"):
        return "an HTML page, as a failed download leaves it"
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
    target = Path(path).resolve()
    kept = ""
    try:
        if target.is_file():
            kept = " The old file is unchanged."
        elif target.exists():
            raise OSError(errno.EINVAL, "it is a folder or a device, not a file")
        _replace(target, data)
    except FileNotFoundError as error:
        raise FileAccessError(
            f"{os.fspath(path)}: cannot be written: the folder '{Path(path).parent}' does not exist."
        ) from error
    except OSError as error:
        raise FileAccessError(f"{os.fspath(path)}: cannot be written: {error.strerror}.{kept}") from error


def _replace(target: Path, data: bytes) -> None:
    """Write a temporary file beside `target`, and let it take its place."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


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
        raise FileAccessError(
            f"{where}: the folder '{folder}' does not exist. Create it with `mkdir -p {folder}`."
        ) from error
    except NotADirectoryError as error:
        raise FileAccessError(f"{where}: '{folder}' is not a folder. Choose another prefix.") from error
    except OSError as error:
        raise FileAccessError(
            f"{where}: {error.strerror} in folder '{folder}'. Choose a folder that you may write to."
        ) from error
