"""Files are written whole or not at all, and errors say what is wrong with a path."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from caffe_lite.errors import FileAccessError, MissingFileError
from caffe_lite.serialization import files

not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(number: int):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_written_bytes_are_read_back_and_no_other_file_is_left(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / "weights", b"first")
    files.write_atomically(tmp_path / "weights", b"second")
    assert files.read_bytes(tmp_path / "weights") == b"second"
    assert names_in(tmp_path) == ["weights"]


def test_a_new_file_has_the_permissions_that_open_would_give_it(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / "ours", b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_a_bare_name_is_written_into_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.write_atomically("weights", b"data")
    files.check_writable("lenet")
    assert names_in(tmp_path) == ["weights"]


def test_a_symbolic_link_stays_one_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "weights")
    files.write_atomically(tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "weights").read_bytes() == b"data"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    target = tmp_path / "weights"
    target.write_bytes(b"old")
    monkeypatch.setattr(os if call == "fsync" else Path, call, failing(errno.ENOSPC))
    with pytest.raises(
        FileAccessError, match=r"weights: cannot be written: No space left on device. The old file is unchanged\."
    ):
        files.write_atomically(target, b"new" * 1000)
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == ["weights"]


def test_a_file_that_ends_in_the_middle_of_a_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    target.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the kernel refuses what goes beyond
    try:
        with pytest.raises(FileAccessError, match=r"cannot be written: File too large"):
            files.write_atomically(target, b"x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == ["weights"]


def test_files_written_together_appear_together(tmp_path: Path) -> None:
    with files.together() as write:
        write(tmp_path / "model", b"model")
        write(tmp_path / "state", b"state")
        assert not (tmp_path / "model").exists()
    assert [(tmp_path / name).read_bytes() for name in names_in(tmp_path)] == [b"model", b"state"]


def test_of_files_written_together_none_is_replaced_if_one_fails(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"old")
    (tmp_path / "state").mkdir()
    with (
        pytest.raises(FileAccessError, match=r"state: cannot be written: it is a folder or a device"),
        files.together() as write,
    ):
        write(tmp_path / "model", b"new")
        write(tmp_path / "state", b"new")
    assert (tmp_path / "model").read_bytes() == b"old"
    assert names_in(tmp_path) == ["model", "state"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(tmp_path / "weights", b"new")
    assert names_in(tmp_path) == []


def test_a_write_into_a_missing_folder_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"weights: cannot be written: the folder '.*nowhere' does not exist"):
        files.write_atomically(tmp_path / "nowhere" / "weights", b"")


@pytest.mark.parametrize("path", [os.devnull, os.curdir])
def test_a_device_or_a_folder_is_never_replaced(path: str) -> None:
    with pytest.raises(FileAccessError, match=r"cannot be written: it is a folder or a device, not a file"):
        files.write_atomically(path, b"data")


def test_a_writable_prefix_passes_and_nothing_is_left_of_the_check(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "lenet")
    files.check_writable(f"{tmp_path}/")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("prefix", ["snapshots/lenet", "snapshots/"])
def test_a_prefix_in_a_missing_folder_says_how_to_create_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = f"snapshot prefix '{prefix}' cannot be written: the folder 'snapshots' does not exist. "
    with pytest.raises(FileAccessError, match=expected + "Create it with `mkdir -p snapshots`"):
        files.check_writable(prefix)


def test_a_prefix_below_a_file_says_that_it_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileAccessError, match=r"cannot be written: '.*file' is not a folder"):
        files.check_writable(tmp_path / "file" / "lenet")


def test_a_folder_that_takes_no_files_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "touch", failing(errno.ENOENT))  # as Linux answers in /proc
    with pytest.raises(FileAccessError, match=r"the folder '.*' takes no new files. Choose another prefix"):
        files.check_writable(tmp_path / "lenet")


def test_a_prefix_on_a_read_only_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "touch", failing(errno.EROFS))
    with pytest.raises(FileAccessError, match=r"Read-only file system in folder '.*'. Choose a folder that you may"):
        files.check_writable(tmp_path / "lenet")


@not_as_root
def test_a_prefix_without_permission_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FileAccessError, match=r"Permission denied in folder"):
        files.check_writable(tmp_path / "lenet")


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=rf"nothing: no such file. .* the current folder, {tmp_path}"):
        files.read_bytes("nothing")


def test_a_folder_is_no_file_and_a_database_is_recognized(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"is a folder. Expected a file"):
        files.read_bytes(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"")
    with pytest.raises(FileAccessError, match=r"is an LMDB database. Expected a file"):
        files.read_bytes(tmp_path)


def test_a_file_that_must_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", failing(errno.EACCES))
    with pytest.raises(FileAccessError, match=r"weights: cannot be read: Permission denied"):
        files.read_bytes(tmp_path / "weights")


@pytest.mark.parametrize(
    ("data", "description"),
    [
        (b"", "an empty file"),
        (b"name: 'LeNet'\nlayer {\n", "a text prototxt"),
        (b"# a comment\n\nlayer {", "a text prototxt"),
        (b"\n<!DOCTYPE html>\n<html>", "an HTML page"),
        (b"<?xml version='1.0'?>", "an XML file"),
        ("name".encode("utf-16"), "text in UTF-16; save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file"),
        (b"\x89PNG\r\n\x1a\n\0", "a PNG image"),
        (b"\xff\xd8\xff\xe0\0", "a JPEG image"),
        (b"PK\x03\x04\0", "a zip archive"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"\x93NUMPY\1\0", "a numpy array"),
        (b"dear reader", "a text file"),
        ("Grüße, ".encode() * 100, "a text file"),
    ],
)
def test_a_file_of_another_kind_is_recognized_by_its_beginning(data: bytes, description: str) -> None:
    assert (files.looks_like(data) or "").startswith(description)


@pytest.mark.parametrize(
    "data", [b"\n\x05LeNet\xa2\x06\x05\n\x03abc", b"\n\tnine name\xa2\x06", b"\x08\x0f\x12\x03abc"]
)
def test_a_binary_message_is_not_taken_for_text(data: bytes) -> None:
    assert files.looks_like(data) is None


def test_an_lmdb_data_file_is_recognized(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    lmdb.open(str(tmp_path)).close()
    assert files.looks_like(files.read_bytes(tmp_path / "data.mdb")) == "the data file of an LMDB database"
