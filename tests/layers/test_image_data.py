"""ImageData: the original's batches, order, sizes and complaints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from google.protobuf import text_format
from nets import parse

from caffe_lite.errors import DataError, FileAccessError, MissingFileError, NetError
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2

FILES = Path(__file__).resolve().parents[1] / "reference" / "files"
TRAIN, TEST = caffe_pb2.TRAIN, caffe_pb2.TEST
COLORS = 11  # the colour of image i is i times this


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a function that builds a net of an ImageData layer in a folder with a list of seven images."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    lines = []
    for number in range(7):
        assert cv2.imwrite(f"images/{number} a.png", np.full((4 + number, 6, 3), COLORS * number, np.uint8))
        lines.append(f"{number} a.png {number}\n")
    Path("list.txt").write_text("".join(lines))
    nets: list[Net] = []

    def build(options: str = "", transform: str = "crop_size: 4", phase: int = TEST, seed: int = 1) -> Net:
        text = (
            f'layer {{ name: "d" type: "ImageData" top: "data" top: "label" transform_param {{ {transform} }} '
            f'image_data_param {{ source: "list.txt" root_folder: "images/" {options} }} }}'
        )
        nets.append(Net.from_param(parse(text, phase), seed=seed))
        return nets[-1]

    yield build
    for net in nets:
        net.close()


def labels(net: Net, passes: int) -> list[int]:
    return [int(label) for _ in range(passes) for label in net.forward()["label"]]


@pytest.mark.parametrize("case", ["image_data", "image_data_gray"])
def test_batches_equal_the_original_exactly(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FILES)
    param = text_format.Parse(Path(f"{case}.prototxt").read_text(), caffe_pb2.NetParameter())
    param.state.phase = TEST
    net = Net.from_param(param)
    with np.load(f"{case}.npz") as expected:
        for number in range(2):
            tops = net.forward()
            np.testing.assert_array_equal(tops["data"], expected[f"data_{number}"])
            np.testing.assert_array_equal(tops["label"], expected[f"label_{number}"])
    net.close()


def test_a_pass_gives_the_next_images_and_starts_over_at_the_end(build: Any) -> None:
    net = build("batch_size: 3")
    assert labels(net, 5) == [number % 7 for number in range(15)]
    np.testing.assert_array_equal(net.blobs["data"].data[:, 0, 0, 0], COLORS * net.blobs["label"].data)


def test_shuffle_gives_every_image_once_in_a_new_order_each_time(build: Any) -> None:
    seen = labels(build("batch_size: 7 shuffle: true"), 3)
    epochs = [seen[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert labels(build("batch_size: 7 shuffle: true"), 3) == seen
    assert labels(build("batch_size: 7 shuffle: true", seed=2), 3) != seen


def test_seek_finds_the_place_in_the_shuffled_list(build: Any) -> None:
    seen = labels(build("batch_size: 3 shuffle: true"), 6)
    net = build("batch_size: 3 shuffle: true")
    net.seek(4)
    assert labels(net, 2) == seen[12:]


def test_rand_skip_leaves_out_the_first_images(build: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "caffe_lite")
    first = labels(build("batch_size: 7 rand_skip: 7", seed=3), 1)
    assert f"Skipping first {first[0]} data points." in caplog.messages
    assert first == [(first[0] + number) % 7 for number in range(7)]


def test_single_images_of_any_size_reshape_the_net(build: Any) -> None:
    net = build(transform="")
    for number in [0, 1, 2, 3, 4, 5, 6, 0]:
        data = net.forward()["data"]
        assert data.shape == (1, 3, 4 + number, 6)
        assert (data == COLORS * number).all()


def test_images_are_resized_by_linear_interpolation(build: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    cv2.imwrite("images/x.png", pixels)
    Path("list.txt").write_text("x.png 0\n")
    data = build("new_height: 5 new_width: 8", "").forward()["data"]
    np.testing.assert_array_equal(data[0].transpose(1, 2, 0), cv2.resize(pixels, (8, 5)))


def test_a_line_without_label_has_label_zero_and_empty_lines_do_not_count(build: Any) -> None:
    Path("images/0 a.png").rename("images/a.png")
    Path("list.txt").write_text("a.png\n\na.png -3 \r\n")
    assert labels(build(), 3) == [0, -3, 0]


def test_train_crops_and_mirrors_at_random_and_test_does_not(build: Any) -> None:
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    cv2.imwrite("images/x.png", pixels)
    Path("list.txt").write_text("x.png 0\n")
    transform = "crop_size: 3 mirror: true"
    distinct = {phase: set() for phase in (TRAIN, TEST)}
    for phase, found in distinct.items():
        net = build("batch_size: 50", transform, phase)
        found.update(item.tobytes() for item in net.forward()["data"])
    assert len(distinct[TEST]) == 2  # mirrored or not
    assert len(distinct[TRAIN]) > 20


# -- complaints


def test_a_missing_image_names_file_and_line_of_the_list(build: Any) -> None:
    Path("images/2 a.png").unlink()
    net = build("batch_size: 2")
    net.forward()
    with pytest.raises(MissingFileError, match=r"layer 'd' \(ImageData\): list.txt:3: images/2 a.png: no such image"):
        net.forward()


def test_a_missing_first_image_is_found_when_the_net_is_built(build: Any) -> None:
    Path("list.txt").write_text("\nnowhere.jpg 1\n")
    with pytest.raises(MissingFileError, match=r"list.txt:2: images/nowhere.jpg: no such image"):
        build()


def test_what_is_not_an_image_names_file_and_line(build: Any) -> None:
    Path("images/0 a.png").write_bytes(b"not a picture")
    with pytest.raises(
        DataError, match=r"list.txt:1: images/0 a.png: the encoded image cannot be decoded.*b'not a pi'"
    ):
        build()


def test_a_folder_in_place_of_an_image_is_an_access_error(build: Any) -> None:
    Path("images/0 a.png").unlink()
    Path("images/0 a.png").mkdir()
    with pytest.raises(FileAccessError, match=r"list.txt:1: images/0 a.png cannot be read"):
        build()


@pytest.mark.parametrize("label", ["0.5", "cat", "1e3"])
def test_a_label_that_is_no_whole_number_is_an_error(build: Any, label: str) -> None:
    Path("list.txt").write_text(f"0 a.png 0\n1 a.png {label}\n")
    with pytest.raises(DataError, match=f"list.txt:2: the label is not a whole number. .* received '1 a.png {label}'"):
        build()


def test_an_empty_list_is_an_error(build: Any) -> None:
    Path("list.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"list.txt: the list names no image"):
        build()


def test_a_missing_list_is_a_missing_file(build: Any) -> None:
    Path("list.txt").unlink()
    with pytest.raises(MissingFileError, match=r"layer 'd' .*list.txt: no such list of images. Paths count from"):
        build()


def test_a_list_that_cannot_be_read_is_an_access_error(build: Any) -> None:
    Path("list.txt").unlink()
    Path("list.txt").mkdir()
    with pytest.raises(FileAccessError, match=r"list.txt cannot be read"):
        build()


def test_images_of_different_size_in_a_batch_name_both_lines(build: Any) -> None:
    net = build("batch_size: 2", "")
    with pytest.raises(
        DataError, match=r"list.txt: line 2, '1 a.png': the shape differs from that of line 1, '0 a.png'.*3x4x6.*3x5x6"
    ):
        net.forward()


def test_an_image_smaller_than_the_crop_names_file_and_line(build: Any) -> None:
    with pytest.raises(DataError, match=r"list.txt:1: the image is smaller than crop_size 5. Received 3x4x6"):
        build(transform="crop_size: 5")


def test_opencv_missing_names_the_command(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(DataError, match=r"needs the library cv2. Install it with: pip install opencv-python-headless"):
        build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("batch_size: 0", "image_data_param: batch_size is 0. Expected 1 or more"),
        ("new_height: 4", "new_height and new_width must be set together. Received new_height 4, new_width 0"),
        ("new_width: 4", "new_height and new_width must be set together. Received new_height 0, new_width 4"),
        ("rand_skip: 4000000000", "rand_skip 4000000000 skips more than the 7 images"),
    ],
)
def test_options_that_do_not_fit_are_an_error(build: Any, options: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        build(options)


def test_one_top_is_an_error() -> None:
    with pytest.raises(NetError, match=r"wrong number of tops. Expected 2, received 1"):
        Net.from_param(parse('layer { name: "d" type: "ImageData" top: "data" }'))
