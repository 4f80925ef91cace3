"""idx files and the conversion of MNIST."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from caffe_lite import resources
from caffe_lite.data import mnist
from caffe_lite.data.database import open_reader
from caffe_lite.errors import DataError, FileAccessError, MissingFileError, UsageError
from caffe_lite.proto import caffe_pb2

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 4), dtype=np.uint8)
CLASSES = np.array([3, 0, 9, 1, 0], np.uint8)


def images(path: Path, pixels: np.ndarray = PIXELS) -> Path:
    path.write_bytes(struct.pack(">4I", 2051, *pixels.shape) + pixels.tobytes())
    return path


def labels(path: Path, classes: np.ndarray = CLASSES) -> Path:
    path.write_bytes(struct.pack(">2I", 2049, len(classes)) + classes.tobytes())
    return path


def test_images_and_labels_are_read_plain_and_gzipped(tmp_path: Path) -> None:
    plain = images(tmp_path / "images")
    packed = tmp_path / "images.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    np.testing.assert_array_equal(mnist.read_idx(plain, mnist.IMAGES), PIXELS)
    np.testing.assert_array_equal(mnist.read_idx(packed, mnist.IMAGES), PIXELS)
    np.testing.assert_array_equal(mnist.read_idx(labels(tmp_path / "labels"), mnist.LABELS), CLASSES)


def test_records_are_the_bytes_that_the_original_writes(tmp_path: Path) -> None:
    """Fields in the order of their numbers, the label also where it is 0, nothing else."""
    mnist.convert(images(tmp_path / "images"), labels(tmp_path / "labels"), tmp_path / "db")
    with contextlib.closing(open_reader(tmp_path / "db")) as reader:
        records = list(reader.read())
    expected = [
        (b"%08d" % k, b"\x08\x01\x10\x03\x18\x04\x22\x0c" + PIXELS[k].tobytes() + bytes([0x28, CLASSES[k]]))
        for k in range(5)
    ]
    assert records == expected


def test_convert_says_how_many_and_logs_what_caffe_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "caffe_lite")
    assert mnist.convert(images(tmp_path / "images"), labels(tmp_path / "labels"), tmp_path / "db") == 5
    assert caplog.messages == ["A total of 5 items.", "Rows: 3 Cols: 4", "Processed 5 files."]


def test_an_existing_database_is_overwritten_only_if_asked(tmp_path: Path) -> None:
    files = images(tmp_path / "images"), labels(tmp_path / "labels")
    mnist.convert(*files, tmp_path / "db")
    with pytest.raises(UsageError, match="exists already"):
        mnist.convert(*files, tmp_path / "db")
    assert mnist.convert(*files, tmp_path / "db", overwrite=True) == 5


def test_files_of_different_length_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images holds 5 images, but .*labels holds 4 labels"):
        mnist.convert(images(tmp_path / "images"), labels(tmp_path / "labels", CLASSES[:4]), tmp_path / "db")
    assert not (tmp_path / "db").exists()


def test_a_file_without_pixels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images holds no pixels. Its shape is \(0, 3, 4\)"):
        mnist.convert(
            images(tmp_path / "images", PIXELS[:0]), labels(tmp_path / "labels", CLASSES[:0]), tmp_path / "db"
        )


def test_exchanged_files_are_recognized(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels: not an image file .*magic number 2051, found a label file"):
        mnist.read_idx(labels(tmp_path / "labels"), mnist.IMAGES)
    with pytest.raises(DataError, match=r"images: not a label file .*magic number 2049, found an image file"):
        mnist.read_idx(images(tmp_path / "images"), mnist.LABELS)


@pytest.mark.parametrize(
    ("content", "looks"), [(b"", "found empty"), (b"<html>", "begins with b'<htm'"), (b"\0", "begins with")]
)
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, content: bytes, looks: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=f"not an image file .*{looks}"):
        mnist.read_idx(tmp_path / "file", mnist.IMAGES)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = images(tmp_path / "images")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"images is truncated. Expected 76 bytes for shape \(5, 3, 4\), found 75"):
        mnist.read_idx(path, mnist.IMAGES)
    path.write_bytes(content[:15])
    with pytest.raises(DataError, match=r"truncated within its header. Expected 16 bytes, found 15"):
        mnist.read_idx(path, mnist.IMAGES)


def test_a_damaged_gzip_file_is_an_error(tmp_path: Path) -> None:
    content = gzip.compress(images(tmp_path / "images").read_bytes())
    for damaged in (content[:-9], content[:20] + b"\xff" * 20 + content[40:]):
        (tmp_path / "images.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"images.gz: the gzip file is truncated or damaged"):
            mnist.read_idx(tmp_path / "images.gz", mnist.IMAGES)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"images: no such file. Expected an idx file"):
        mnist.read_idx(tmp_path / "images", mnist.IMAGES)


def test_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="cannot be read: Is a directory"):
        mnist.read_idx(tmp_path, mnist.IMAGES)


def test_the_bundled_files_are_mnist(tmp_path: Path) -> None:
    folder = resources.path("models/lenet")
    sums = dict(line.split()[::-1] for line in (folder / "readme.md").read_text().splitlines() if line.endswith(".gz"))
    assert len(sums) == 4
    for name, checksum in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum, name
    count = mnist.convert(folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz", tmp_path / "db")
    assert count == 10000
    with contextlib.closing(open_reader(tmp_path / "db")) as reader:
        key, value = next(reader.read())
    datum = caffe_pb2.Datum.FromString(value)
    assert (key, datum.channels, datum.height, datum.width, datum.label) == (b"00000000", 1, 28, 28, 7)
