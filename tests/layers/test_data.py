"""Data: the original's batches, the kernel against a float64 definition, places in the database, and complaints."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray

from caffe_lite.blob import Blob
from caffe_lite.data.database import create as create_database
from caffe_lite.data.transformer import Transformer
from caffe_lite.devices import Tape, host_device
from caffe_lite.errors import DataError, MissingFileError, NetError
from caffe_lite.layers import create
from caffe_lite.proto import caffe_pb2

from .harness import assert_close

FILES = Path(__file__).resolve().parents[1] / "reference" / "files"
TRAIN, TEST = caffe_pb2.TRAIN, caffe_pb2.TEST
SEED = 0x0123456789ABCDEF


@dataclasses.dataclass
class Run:
    """A Data layer with its tops, driven as a net does: prepare, then a recorded forward."""

    layer: Any
    top: list[Blob]
    tape: Tape | None = None

    def step(self) -> list[NDArray[np.float32]]:
        """Return copies of the tops after one more forward pass."""
        shape = self.top[0].shape
        self.layer.prepare([], self.top)
        if self.tape is None or self.top[0].shape != shape:
            with self.layer.device.record() as self.tape:
                self.layer.forward([], self.top)
        self.tape.replay()
        return [blob.data.copy() for blob in self.top]

    def labels(self, passes: int) -> list[list[float]]:
        """Return the labels of the next passes."""
        return [self.step()[1].tolist() for _ in range(passes)]


@pytest.fixture
def open_layer() -> Iterator[Any]:
    """Give a function that sets up a layer from its prototxt; what it opened is closed at the end."""
    runs = []

    def open_layer(text: str, phase: int = TEST, seed: int = SEED, tops: int = 2) -> Run:
        layer = create(text_format.Parse(text, caffe_pb2.LayerParameter()), phase, host_device())
        layer.seed = seed
        run = Run(layer, [Blob(layer.device, (), name) for name in ("data", "label")[:tops]])
        layer.setup([], run.top)
        runs.append(run)
        layer.reshape([], run.top)
        return run

    yield open_layer
    for run in runs:
        run.layer.close()


def database(path: Path, images: list[NDArray[Any]]) -> Path:
    """Write a database of `images`, labelled 0, 1, 2, ..."""
    with create_database(path) as writer:
        for number, image in enumerate(images):
            channels, height, width = image.shape
            datum = caffe_pb2.Datum(channels=channels, height=height, width=width, label=number)
            if image.dtype == np.uint8:
                datum.data = image.tobytes()
            else:
                datum.float_data.extend(image.ravel().tolist())
            writer.put(b"%08d" % number, datum.SerializeToString())
    return path


def pictures(count: int, channels: int = 2, height: int = 5, width: int = 7) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(count).integers(0, 256, (count, channels, height, width), dtype=np.uint8))


def prototxt(source: Path, batch_size: int, transform: str = "", data: str = "") -> str:
    return (
        f'name: "d" type: "Data" top: "data" top: "label" transform_param {{ {transform} }} '
        f'data_param {{ source: "{source}" backend: LMDB batch_size: {batch_size} {data} }}'
    )


# -- the original's numbers


@pytest.mark.parametrize("case", ["data_raw", "data_gray", "data_crop_mean_file", "data_mean_values", "data_leveldb"])
def test_batches_equal_the_original_exactly(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_layer: Any
) -> None:
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    text = text_format.Parse(Path(f"{case}.prototxt").read_text(), caffe_pb2.NetParameter()).layer[0]
    run = open_layer(str(text))
    with np.load(f"{case}.npz") as expected:
        for number in range(2):
            data, label = run.step()
            np.testing.assert_array_equal(data, expected[f"data_{number}"])
            np.testing.assert_array_equal(label, expected[f"label_{number}"])


# -- against the definition

MEANS = {
    "none": ("", lambda mean: np.zeros((2, 1, 1))),
    "value": ("mean_value: 100.5", lambda mean: np.full((2, 1, 1), 100.5)),
    "values": ("mean_value: 100 mean_value: 50.25", lambda mean: np.array([100, 50.25]).reshape(2, 1, 1)),
    "file": ('mean_file: "mean"', lambda mean: mean),
}


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("options", ["", "crop_size: 3", "mirror: true", "crop_size: 3 mirror: true scale: 0.3"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_forward_is_the_definition(
    dtype: Any, options: str, mean: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_layer: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    mean_image = np.random.default_rng(1).uniform(0, 255, (2, 5, 7)).astype(np.float32)
    proto = caffe_pb2.BlobProto(num=1, channels=2, height=5, width=7, data=mean_image.ravel())
    Path("mean").write_bytes(proto.SerializeToString())
    images = [image.astype(dtype) for image in pictures(7)]
    text, make_mean = MEANS[mean]
    run = open_layer(prototxt(database(tmp_path / "db", images), 7, f"{text} {options}"), TRAIN)
    wholes = np.array(images, np.float64) - make_mean(mean_image.astype(np.float64))
    param = run.layer.param.transform_param
    size = (param.crop_size,) * 2 if param.crop_size else (5, 7)
    for first in (0, 7):
        placement = Transformer(param, TRAIN, SEED).pack(images, [""] * 7, [0] * 7, first).placement
        windows = [
            whole[:, row : row + size[0], column : column + size[1]][:, :, :: -1 if mirror else 1]
            for whole, (row, column, mirror) in zip(wholes, placement, strict=True)
        ]
        assert_close(run.step()[0], np.array(windows) * param.scale, f"batch from item {first}")


def test_a_tiny_image_mirrored_by_hand(tmp_path: Path, open_layer: Any) -> None:
    """[[1 2 3] [4 5 6]] less the mean 1, doubled, is [[0 2 4] [6 8 10]]; mirrored, [[4 2 0] [10 8 6]]."""
    image = np.uint8([[[1, 2, 3], [4, 5, 6]]])
    text = prototxt(database(tmp_path / "db", [image] * 40), 40, "mean_value: 1 scale: 2 mirror: true")
    seen = {str(item[0].tolist()) for item in open_layer(text, TRAIN).step()[0]}
    assert seen == {"[[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]", "[[4.0, 2.0, 0.0], [10.0, 8.0, 6.0]]"}


def test_nan_in_float_data_passes_through(tmp_path: Path, open_layer: Any) -> None:
    image = np.float32([[[np.nan, 1]]])
    data = open_layer(prototxt(database(tmp_path / "db", [image]), 1, "scale: 3")).step()[0]
    assert np.isnan(data[0, 0, 0, 0]) and data[0, 0, 0, 1] == 3


# -- tops, place in the database


def test_the_log_says_what_the_original_says(tmp_path: Path, open_layer: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "caffe_lite")
    path = database(tmp_path / "db", pictures(3))
    open_layer(prototxt(path, 2))
    assert caplog.messages == [f"Opened lmdb {path}", "output data size: 2,2,5,7"]


def test_without_a_second_top_there_are_no_labels(tmp_path: Path, open_layer: Any) -> None:
    run = open_layer(prototxt(database(tmp_path / "db", pictures(3)), 2), tops=1)
    assert [top.shape for top in run.step()] == [(2, 2, 5, 7)]


def test_the_end_of_the_database_is_followed_by_its_start(
    tmp_path: Path, open_layer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "caffe_lite")
    images = pictures(5)
    run = open_layer(prototxt(database(tmp_path / "db", images), 3, data="prefetch: 1"))
    assert run.labels(4) == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]
    np.testing.assert_array_equal(run.step()[0], [images[2], images[3], images[4]])
    assert caplog.messages.count("Restarting data prefetching from start.") >= 3


def test_a_batch_may_be_larger_than_the_database(tmp_path: Path, open_layer: Any) -> None:
    assert open_layer(prototxt(database(tmp_path / "db", pictures(2)), 5)).labels(1) == [[0, 1, 0, 1, 0]]


@pytest.mark.parametrize("passes", [0, 1, 2, 7, 100])
def test_seek_gives_what_an_uninterrupted_run_gives(tmp_path: Path, open_layer: Any, passes: int) -> None:
    text = prototxt(database(tmp_path / "db", pictures(5)), 3, "crop_size: 3 mirror: true", "rand_skip: 4")
    uninterrupted, resumed = open_layer(text, TRAIN), open_layer(text, TRAIN)
    for _ in range(passes):
        uninterrupted.step()
    resumed.step()
    resumed.layer.seek(passes)
    for _ in range(2):
        for received, expected in zip(resumed.step(), uninterrupted.step(), strict=True):
            np.testing.assert_array_equal(received, expected)


def test_seek_in_a_large_database_is_quick(tmp_path: Path, open_layer: Any) -> None:
    run = open_layer(prototxt(database(tmp_path / "db", pictures(1, 1, 1, 1) * 60000), 64))
    start = time.perf_counter()
    run.layer.seek(937)  # 59968 records
    assert run.labels(1) == [[*range(59968, 60000), *range(32)]]
    assert time.perf_counter() - start < 0.5


def test_rand_skip_starts_within_its_limit_and_depends_on_the_seed(
    tmp_path: Path, open_layer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "caffe_lite")
    text = prototxt(database(tmp_path / "db", pictures(9)), 1, data="rand_skip: 4")
    starts = [int(open_layer(text, seed=seed).labels(1)[0][0]) for seed in range(40)]
    assert set(starts) == {0, 1, 2, 3}
    assert f"Skipping first {starts[-1]} data points." in caplog.messages


def test_single_images_of_any_size_reshape_the_top(tmp_path: Path, open_layer: Any) -> None:
    images = [*pictures(1, 1, 4, 6), *pictures(2, 3, 2, 3), *pictures(1, 1, 9, 9)]
    run = open_layer(prototxt(database(tmp_path / "db", images), 1, "mean_value: 7"))
    for image in images * 2:
        np.testing.assert_array_equal(run.step()[0], image[np.newaxis] - np.float32(7))


def test_images_of_any_size_can_be_cropped_to_one(tmp_path: Path, open_layer: Any) -> None:
    images = [*pictures(1, 1, 4, 6), *pictures(1, 1, 9, 3)]
    data = open_layer(prototxt(database(tmp_path / "db", images), 2, "crop_size: 3")).step()[0]
    np.testing.assert_array_equal(data, [images[0][:, 0:3, 1:4], images[1][:, 3:6, 0:3]])


def test_a_layer_that_is_forgotten_ends_its_thread(tmp_path: Path, open_layer: Any) -> None:
    def run_and_forget() -> None:
        layer = create(text_format.Parse(text, caffe_pb2.LayerParameter()), TEST, host_device())
        run = Run(layer, [Blob(layer.device)])
        layer.setup([], run.top)
        layer.reshape([], run.top)
        run.step()

    text = prototxt(database(tmp_path / "db", pictures(3)), 2)
    before = threading.active_count()
    run_and_forget()
    gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# -- complaints


def test_images_of_different_size_in_a_batch_are_an_error_at_that_batch(tmp_path: Path, open_layer: Any) -> None:
    images = [*pictures(3, 1, 4, 4), *pictures(1, 1, 4, 5)]
    run = open_layer(prototxt(database(tmp_path / "db", images), 2))
    run.step()
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"db: record '00000003': the shape .* '00000002' .* Expected 1x4x4, received 1x4x5"
        ):
            run.step()
    run.layer.seek(0)
    run.step()


def test_a_database_of_something_else_names_the_record(tmp_path: Path, open_layer: Any) -> None:
    with create_database(tmp_path / "db") as writer:
        writer.put(b"key\xff", b"\xff\xff")
    with pytest.raises(DataError, match=r"db: record 'key\\xff': the value is not a Datum"):
        open_layer(prototxt(tmp_path / "db", 1))


def test_a_bad_record_names_itself(tmp_path: Path, open_layer: Any) -> None:
    text = prototxt(database(tmp_path / "db", pictures(1)), 1, "crop_size: 6")
    with pytest.raises(DataError, match="db: record '00000000': the image is smaller than crop_size 6"):
        open_layer(text)


def test_bytes_and_floats_in_one_database_are_an_error(tmp_path: Path, open_layer: Any) -> None:
    images = [*pictures(1), pictures(1)[0].astype(np.float32)]
    run = open_layer(prototxt(database(tmp_path / "db", images), 1))
    run.step()
    with pytest.raises(DataError, match=r"db: the database mixes records of bytes and of float_data.*received float32"):
        run.step()


def test_the_missing_batch_size_is_an_error(tmp_path: Path, open_layer: Any) -> None:
    with pytest.raises(NetError, match=r"data_param: batch_size is missing. Expected 1 or more"):
        open_layer(prototxt(database(tmp_path / "db", pictures(1)), 0))


def test_the_missing_source_is_an_error(open_layer: Any) -> None:
    with pytest.raises(NetError, match=r"data_param: source is missing. Set it to the folder of a database"):
        open_layer(prototxt(Path("db"), 1).replace('source: "db"', ""))


def test_the_missing_backend_is_explained(tmp_path: Path, open_layer: Any) -> None:
    text = prototxt(database(tmp_path / "db", pictures(1)), 1).replace("backend: LMDB", "")
    with pytest.raises(DataError, match=r"is an LMDB. Write `backend: LMDB` .*without a `backend` Caffe takes LEVELDB"):
        open_layer(text)


def test_a_missing_database_is_a_missing_file(tmp_path: Path, open_layer: Any) -> None:
    with pytest.raises(MissingFileError, match="db: no such database"):
        open_layer(prototxt(tmp_path / "db", 1))


def test_mean_values_that_do_not_fit_the_channels_are_an_error(tmp_path: Path, open_layer: Any) -> None:
    text = prototxt(database(tmp_path / "db", pictures(1)), 1, "mean_value: 1 mean_value: 2 mean_value: 3")
    with pytest.raises(NetError, match="3 mean_values for 2 channels"):
        open_layer(text)
