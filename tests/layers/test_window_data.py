"""WindowData: windows against a definition pixel by pixel, what is drawn, and complaints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from nets import TRAIN, build, layer

from caffe_lite.data.windows import place
from caffe_lite.errors import DataError, MissingFileError, NetError
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2

from .harness import assert_close

IMAGES = ((20, 30), (17, 9))  # height, width
WINDOWS = {  # of each image: class, overlap, x1, y1, x2, y2
    0: [(3, 0.9, 4, 5, 19, 11), (7, 0.5, 0, 0, 29, 19), (2, 0.4, 10, 3, 12, 18), (1, 0.1, 25, 12, 29, 19)],
    1: [(5, 1.0, 1, 1, 7, 15), (4, 0.29, 0, 9, 8, 16)],
}


@pytest.fixture
def open_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a function that builds a net of a WindowData layer in a folder with two images and a window file."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number, (height, width) in enumerate(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert cv2.imwrite(f"images/{number}.png", pixels)
    write(WINDOWS)
    nets: list[Net] = []

    def open_net(options: str = "", transform: str = "", batch_size: int = 8, crop_size: int = 6, seed: int = 1) -> Net:
        text = (
            f"transform_param {{ crop_size: {crop_size} {transform} }} window_data_param "
            f'{{ source: "windows.txt" root_folder: "images/" batch_size: {batch_size} {options} }}'
        )
        nets.append(build(layer("w", "WindowData", tops="data label", more=text), seed, phase=TRAIN))
        return nets[-1]

    yield open_net
    for net in nets:
        net.close()


def write(windows: dict[int, list[tuple[Any, ...]]], channels: int = 3) -> None:
    lines = []
    for number, boxes in windows.items():
        lines += [f"# {number}", f"{number}.png", channels, *IMAGES[number], len(boxes)]
        lines += [" ".join(map(str, box)) for box in boxes]
    Path("windows.txt").write_text("\n".join(map(str, lines)) + "\n")


def crop_of(image: int, box: tuple[int, ...], size: int, pad: int, square: bool, mirror: bool) -> tuple[Any, Any]:
    """Return (pixels, inside) of a window by the words of the definition: the window grown about its centre so that
    `pad` pixels of the crop are surroundings, what lies in the image warped to its share of the crop."""
    pixels = cv2.imread(f"images/{image}.png")
    (x1, y1, x2, y2), (height, width) = box, pixels.shape[:2]
    left = top = 0
    shape = [size, size]
    if pad or square:
        half_w, half_h = (x2 - x1 + 1) / 2, (y2 - y1 + 1) / 2
        center_x, center_y = x1 + half_w, y1 + half_h
        if square:
            half_w = half_h = max(half_w, half_h)
        grow = size / (size - 2 * pad)
        x1, x2 = (math.floor(center_x + sign * half_w * grow + 0.5) for sign in (-1, 1))
        y1, y2 = (math.floor(center_y + sign * half_h * grow + 0.5) for sign in (-1, 1))
        scale_x, scale_y = size / (x2 - x1 + 1), size / (y2 - y1 + 1)
        outside = [max(0, -x1) * scale_x, max(0, x2 - width + 1) * scale_x, max(0, -y1) * scale_y]
        x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width - 1), min(y2, height - 1)
        left, top = math.floor(outside[mirror] + 0.5), math.floor(outside[2] + 0.5)
        shape = [math.floor((y2 - y1 + 1) * scale_y + 0.5), math.floor((x2 - x1 + 1) * scale_x + 0.5)]
        shape = [min(shape[0], size - top), min(shape[1], size - left)]
    warped = cv2.resize(np.ascontiguousarray(pixels[y1 : y2 + 1, x1 : x2 + 1]), (shape[1], shape[0]))
    warped = cv2.flip(warped, 1) if mirror else warped
    result, inside = np.zeros((3, size, size)), np.zeros((size, size), bool)
    for h in range(shape[0]):
        for w in range(shape[1]):
            result[:, top + h, left + w] = warped[h, w]
            inside[top + h, left + w] = True
    return result, inside


@pytest.mark.parametrize("mean", ["none", "value", "values", "file"])
@pytest.mark.parametrize("options", ["", "context_pad: 2", 'crop_mode: "square"', 'crop_mode: "square" context_pad: 1'])
@pytest.mark.parametrize("mirror", [False, True])
def test_every_item_is_a_window_of_the_file_by_the_definition(
    open_net: Any, options: str, mean: str, mirror: bool
) -> None:
    size = 7
    means = {
        "none": np.zeros((3, 1, 1)),
        "value": np.full((3, 1, 1), 99.5),
        "values": np.float64([[[8]], [[90]], [[200]]]),
    }
    fields = {
        "none": "",
        "value": "mean_value: 99.5",
        "values": "mean_value: 8 mean_value: 90 mean_value: 200",
        "file": "",
    }
    if mean == "file":
        whole = np.random.default_rng(9).uniform(50, 200, (3, 14, 12)).astype(np.float32)
        blob = caffe_pb2.BlobProto(num=1, channels=3, height=14, width=12, data=whole.ravel())
        Path("mean").write_bytes(blob.SerializeToString())
        means["file"], fields["file"] = whole[:, 2 : 2 + size, 2 : 2 + size], 'mean_file: "mean"'
    transform = f"{fields[mean]} mirror: {'true' if mirror else 'false'}"
    net = open_net(f"scale: 0.25 fg_fraction: 0.5 {options}", transform, batch_size=40, crop_size=size)
    square, pad = (
        "square" in options,
        int(options.rpartition("context_pad: ")[2][:1] or 0) if "context" in options else 0,
    )
    expected = []
    for image, windows in WINDOWS.items():
        for label, overlap, *box in windows:
            for flip in {False, mirror}:
                pixels, inside = crop_of(image, tuple(box), size, pad, square, flip)
                item = np.where(inside, (pixels - means[mean]) * 0.25, 0)
                expected.append((label if overlap >= 0.5 else 0, item))
    found = set()
    tops = net.forward()
    for item, label in zip(tops["data"], tops["label"], strict=True):
        distances = [np.abs(item - candidate).max() if label == wanted else np.inf for wanted, candidate in expected]
        nearest = int(np.argmin(distances))
        assert_close(item, expected[nearest][1], f"label {label}")
        found.add(nearest)
    assert len(found) == len(expected)


def test_half_of_a_window_outside_the_image_by_hand() -> None:
    """A window of 4 columns that begins at 0, with half a window of context on each side: a quarter of the crop of 8
    columns lies left of the image."""
    at = place((0, 4, 3, 7), (20, 30), 8, context_pad=2)
    assert (at.x1, at.x2, at.left, at.width) == (0, 6, 2, 6)
    assert (at.y1, at.y2, at.top, at.height) == (2, 10, 0, 8)
    assert place((0, 4, 3, 7), (20, 30), 8, context_pad=2, mirror=True).left == 0


def test_background_comes_first_then_the_foreground(open_net: Any) -> None:
    net = open_net("fg_fraction: 0.3", batch_size=9)  # 2.7 foreground windows: 2
    for _ in range(5):
        labels = net.forward()["label"]
        assert not labels[:7].any()
        assert set(labels[7:]) <= {3, 7, 5}


def test_windows_between_the_thresholds_are_left_out(open_net: Any) -> None:
    net = open_net("fg_fraction: 0.5 fg_threshold: 0.6 bg_threshold: 0.2", "mirror: false", batch_size=20)
    tops = net.forward()
    assert set(tops["label"][10:]) == {3, 5}
    background = crop_of(0, (25, 12, 29, 19), 6, 0, False, False)[0]
    for item in tops["data"][:10]:
        np.testing.assert_array_equal(item, background)


def test_what_is_drawn_repeats_with_the_seed_and_seek_finds_it(open_net: Any) -> None:
    first, second = open_net(transform="mirror: true"), open_net(transform="mirror: true")
    batches = [first.forward()["data"].copy() for _ in range(4)]
    assert (batches[0] != batches[1]).any()
    second.seek(2)
    np.testing.assert_array_equal(second.forward()["data"], batches[2])
    assert (open_net(transform="mirror: true", seed=2).forward()["data"] != batches[0]).any()


def test_cached_images_need_no_files(open_net: Any) -> None:
    expected = open_net().forward()["data"].copy()
    net = open_net("cache_images: true")
    for path in Path("images").iterdir():
        path.unlink()
    np.testing.assert_array_equal(net.forward()["data"], expected)


def test_scale_of_transform_param_does_not_count(open_net: Any, caplog: pytest.LogCaptureFixture) -> None:
    expected = open_net().forward()["data"].copy()
    np.testing.assert_array_equal(open_net(transform="scale: 0.5").forward()["data"], expected)
    assert "WindowData takes scale from window_data_param, not from transform_param." in caplog.messages


# -- complaints


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "windows.txt: the window file is empty"),
        ("0\n", "windows.txt:1: expected '# ' and the number of an image, received '0'"),
        ("# 1\n", r"windows.txt:1: the images must be numbered 0, 1, 2, \.\.\. Expected 0, received 1"),
        ("# 0\n0.png\n3\n", "windows.txt:3: the file ends where the image's height should be"),
        (
            "# 0\n0.png\n3 20 30\n1\n1 0.9 4 5 x 7\n",
            "windows.txt:5: a window's x2 is not a number of the right kind. .* 'x'",
        ),
        ("# 0\n0.png\n3 20 30\n2\n1 0.9 4 5 6 7\n", "windows.txt:5: the file ends where a window's class should be"),
        (
            "# 0\n0.png\n3 20 30\n1\n0 0.9 4 5 6 7\n",
            "windows.txt:5: a foreground window must have a class of 1 or more",
        ),
        ("# 0\n0.png\n1 20 30\n0\n", "windows.txt: the images are read in colour. Expected 3 channels, received 1"),
        ("# 0\n0.png\n3 20 30\n1\n1 0.9 4 5 6 7\n", "no window is background. .* an overlap below bg_threshold: 0.5"),
        (
            "# 0\n0.png\n3 20 30\n1\n1 0.1 4 5 6 7\n",
            "no window is foreground. .* an overlap of fg_threshold or more: 0.5",
        ),
    ],
)
def test_a_window_file_that_cannot_be_used_names_the_line(open_net: Any, content: str, message: str) -> None:
    Path("windows.txt").write_text(content)
    with pytest.raises(DataError, match=rf"layer 'w' \(WindowData\): .*{message}"):
        open_net()


@pytest.mark.parametrize("box", [(4, 5, 30, 7), (4, 5, 6, 20), (-1, 5, 6, 7), (6, 5, 4, 7)])
def test_a_window_outside_its_image_names_the_line(open_net: Any, box: tuple[int, ...]) -> None:
    write({0: [(1, 0.1, *box), (1, 0.9, 4, 5, 6, 7)]})
    with pytest.raises(DataError, match=r"windows.txt:7: window of 0.png: the window does not lie within .* x2 < 30 "):
        open_net().forward()


@pytest.mark.parametrize("box", [(50, 5, 60, 7), (4, 50, 6, 60)])
def test_a_window_far_from_its_image_names_the_line(open_net: Any, box: tuple[int, ...]) -> None:
    write({0: [(1, 0.1, *box), (1, 0.9, 4, 5, 6, 7)]})
    with pytest.raises(DataError, match=r"windows.txt:7: window of 0.png: the window does not lie within"):
        open_net("context_pad: 1").forward()


def test_a_missing_image_names_the_line_of_the_window(open_net: Any) -> None:
    Path("images/0.png").unlink()
    Path("images/1.png").unlink()
    with pytest.raises(MissingFileError, match=r"windows.txt:\d+: window of \d.png: images/\d.png: no such image"):
        open_net().forward()
    with pytest.raises(MissingFileError, match=r"layer 'w' \(WindowData\): images/0.png: no such image"):
        open_net("cache_images: true")


def test_a_missing_window_file_is_a_missing_file(open_net: Any) -> None:
    Path("windows.txt").unlink()
    with pytest.raises(MissingFileError, match=r"windows.txt: no such window file"):
        open_net()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "window_data_param: batch_size is missing"),
        ({"crop_size": 0}, "transform_param: crop_size is missing"),
        ({"options": 'crop_mode: "wrap"'}, "crop_mode must be 'warp' or 'square'. Received 'wrap'"),
        ({"options": "context_pad: 3"}, "twice context_pad 3 must be smaller than crop_size 6"),
        ({"options": "fg_fraction: 1.5"}, "fg_fraction must be from 0 to 1. Received 1.5"),
        ({"transform": "mean_value: 1 mean_value: 2"}, "2 mean_values for 3 channels"),
        ({"transform": 'mean_file: "mean"'}, "mean file mean: expected 3 channels, 6 x 6 or larger, received 3x5x9"),
    ],
)
def test_options_that_do_not_fit_are_an_error(open_net: Any, settings: dict[str, Any], message: str) -> None:
    mean = caffe_pb2.BlobProto(num=1, channels=3, height=5, width=9, data=[0.0] * 135)
    Path("mean").write_bytes(mean.SerializeToString())
    with pytest.raises(NetError, match=message):
        open_net(**settings)
