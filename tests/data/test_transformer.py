"""transform_param on the host: decoding, windows, what is mirrored, and every complaint."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_lite.data.transformer import Transformer, parse, random_bits, read_mean
from caffe_lite.errors import DataError, FileAccessError, MissingFileError, NetError
from caffe_lite.proto import caffe_pb2

TRAIN, TEST = caffe_pb2.TRAIN, caffe_pb2.TEST


def transformer(text: str = "", phase: int = TEST, seed: int = 1) -> Transformer:
    return Transformer(text_format.Parse(text, caffe_pb2.TransformationParameter()), phase, seed)


def image(channels: int, height: int, width: int) -> np.ndarray:
    return np.arange(channels * height * width, dtype=np.uint8).reshape(channels, height, width)


def datum(pixels: np.ndarray, **fields: Any) -> Any:
    channels, height, width = pixels.shape
    return caffe_pb2.Datum(channels=channels, height=height, width=width, data=pixels.tobytes(), **fields)


def pack(transformer: Transformer, images: list[np.ndarray], first: int = 0) -> Any:
    return transformer.pack(images, [f"record 'i{k}'" for k in range(len(images))], [0] * len(images), first)


def test_bytes_become_uint8() -> None:
    pixels = image(3, 2, 5)
    result = transformer().image(datum(pixels))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, pixels)


def test_float_data_becomes_float32() -> None:
    values = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 4)
    result = transformer().image(caffe_pb2.Datum(channels=1, height=3, width=4, float_data=values.ravel()))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, values)


def test_pack_keeps_pixels_and_labels() -> None:
    images = [image(2, 3, 4), image(2, 3, 4)[::-1]]
    batch = transformer().pack(images, ["a", "b"], [7, -1], 0)
    np.testing.assert_array_equal(batch.pixels, images)
    np.testing.assert_array_equal(batch.labels, np.float32([7, -1]))
    assert (batch.labels.dtype, batch.placement.dtype) == (np.float32, np.int32)
    assert not batch.placement.any()


def test_crop_in_test_is_the_centre_rounded_down() -> None:
    """An odd rest leaves one line more below and to the right, as in the original."""
    batch = pack(transformer("crop_size: 2"), [image(2, 5, 4)])
    np.testing.assert_array_equal(batch.pixels, image(2, 5, 4)[np.newaxis, :, 1:3, 1:3])
    np.testing.assert_array_equal(batch.placement, [[1, 1, 0]])


def test_the_window_is_the_centre_in_test_and_mirror_applies_there_too() -> None:
    batch = pack(transformer("crop_size: 2 mirror: true"), [image(1, 6, 6)] * 200)
    assert (batch.placement[:, :2] == 2).all()
    assert 60 < batch.placement[:, 2].sum() < 140


def test_crop_in_train_reaches_every_window_alike() -> None:
    images = [image(1, 4, 5)] * 6000
    batch = pack(transformer("crop_size: 3 mirror: true", TRAIN), images)
    windows, counts = np.unique(batch.placement, axis=0, return_counts=True)
    assert len(windows) == 2 * 3 * 2
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    for pixels, (row, column, _) in zip(batch.pixels[:50], batch.placement[:50], strict=True):
        np.testing.assert_array_equal(pixels, images[0][:, row : row + 3, column : column + 3])


def test_mirror_alone_does_not_move_the_window() -> None:
    batch = pack(transformer("mirror: true", TRAIN), [image(1, 3, 3)] * 200)
    assert not batch.placement[:, :2].any()
    assert 60 < batch.placement[:, 2].sum() < 140


def test_what_is_random_depends_on_seed_and_item_alone() -> None:
    images = [image(1, 9, 9)] * 20
    text = "crop_size: 4 mirror: true"
    whole = pack(transformer(text, TRAIN), images).placement
    resumed = pack(transformer(text, TRAIN), images[:8], first=12).placement
    np.testing.assert_array_equal(resumed, whole[12:])
    assert (pack(transformer(text, TRAIN, seed=2), images).placement != whole).any()


def test_random_bits_take_any_seed_of_64_bits() -> None:
    rows = [random_bits(seed, 10**12, 3) for seed in (0, 1, 2**63, 2**64 - 1)]
    assert all(bits.shape == (3, 3) and bits.dtype == np.uint64 for bits in rows)
    assert len({bits.tobytes() for bits in rows}) == 4


def test_images_may_differ_in_size_if_each_holds_the_crop() -> None:
    batch = pack(transformer("crop_size: 2"), [image(1, 4, 6), image(1, 6, 2)])
    np.testing.assert_array_equal(batch.placement, [[1, 2, 0], [2, 0, 0]])
    np.testing.assert_array_equal(batch.pixels[1, 0], image(1, 6, 2)[0, 2:4, 0:2])


def test_images_of_different_size_without_crop_are_an_error() -> None:
    with pytest.raises(
        DataError, match=r"record 'i1': the shape differs from that of record 'i0'.*Expected 1x4x4, received 1x4x5"
    ):
        pack(transformer(), [image(1, 4, 4), image(1, 4, 5)])


def test_images_of_different_depth_are_an_error() -> None:
    with pytest.raises(DataError, match=r"record 'i1': .* Expected 1x4x4, received 3x4x4"):
        pack(transformer("crop_size: 2"), [image(1, 4, 4), image(3, 4, 4)])


def test_bytes_and_floats_in_one_batch_are_an_error() -> None:
    with pytest.raises(DataError, match="record 'i1' holds float_data, but record 'i0' in the same batch holds bytes"):
        pack(transformer(), [image(1, 4, 4), image(1, 4, 4).astype(np.float32)])


def test_an_image_smaller_than_the_crop_is_an_error() -> None:
    with pytest.raises(DataError, match=r"smaller than crop_size 5. Received 1x4x6"):
        transformer("crop_size: 5").image(datum(image(1, 4, 6)))


@pytest.mark.parametrize("fields", [{}, {"channels": 1, "height": 2, "width": 2}, {"data": b"abcd"}])
def test_a_datum_without_an_image_is_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="the Datum holds no image"):
        transformer().image(caffe_pb2.Datum(**fields))


@pytest.mark.parametrize("size", [11, 13])
def test_a_datum_of_the_wrong_size_is_an_error(size: int) -> None:
    with pytest.raises(DataError, match=rf"shape is \(1, 3, 4\), but it holds {size} elements"):
        transformer().image(caffe_pb2.Datum(channels=1, height=3, width=4, data=bytes(size)))


def test_a_value_that_is_no_datum_is_an_error() -> None:
    with pytest.raises(DataError, match=r"the value is not a Datum. Is this a database that Caffe's tools made"):
        parse(b"\xff\xff\xff")


def test_force_color_on_plain_data_is_a_single_warning(caplog: pytest.LogCaptureFixture) -> None:
    forcing = transformer("force_color: true")
    for _ in range(3):
        forcing.image(datum(image(1, 2, 2)))
    assert caplog.messages == ["force_color and force_gray apply to encoded images only."]


def test_force_color_and_force_gray_exclude_each_other() -> None:
    with pytest.raises(NetError, match="force_color and force_gray exclude each other"):
        transformer("force_color: true force_gray: true")


# -- mean


def test_mean_values_are_one_for_all_channels_or_one_each() -> None:
    assert transformer().mean(3).ravel().tolist() == [0, 0, 0]
    assert transformer("mean_value: 5").mean(3).ravel().tolist() == [5, 5, 5]
    assert transformer("mean_value: 5 mean_value: 6").mean(2).ravel().tolist() == [5, 6]
    with pytest.raises(NetError, match=r"2 mean_values for 3 channels. Expected one, or one a channel"):
        transformer("mean_value: 5 mean_value: 6").mean(3)


def test_mean_file_and_mean_value_exclude_each_other() -> None:
    with pytest.raises(NetError, match="mean_file and mean_value exclude each other"):
        transformer('mean_file: "mean.binaryproto" mean_value: 1')


def mean_file(path: Path, *shape: int, values: int = 12) -> Path:
    proto = caffe_pb2.BlobProto(data=range(values))
    proto.shape.dim.extend(shape)
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_mean_file_is_one_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "caffe_lite")
    path = mean_file(tmp_path / "mean", 1, 2, 3, 2)
    np.testing.assert_array_equal(
        transformer(f'mean_file: "{path}"').mean(2), np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    )
    assert caplog.messages == [f"Loading mean file from: {path}"]


def test_a_mean_file_in_legacy_form_is_read(tmp_path: Path) -> None:
    legacy = caffe_pb2.BlobProto(num=1, channels=1, height=2, width=3, data=range(6))
    (tmp_path / "mean").write_bytes(legacy.SerializeToString())
    assert read_mean(str(tmp_path / "mean")).tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_an_image_that_does_not_fit_the_mean_file_is_an_error(tmp_path: Path) -> None:
    path = mean_file(tmp_path / "mean", 1, 2, 3, 2)
    with pytest.raises(DataError, match=r"does not fit the mean file .*mean. Expected 2x3x2, received 2x3x3"):
        transformer(f'mean_file: "{path}" crop_size: 2').image(datum(image(2, 3, 3)))


def test_mean_files_that_cannot_be_used_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"mean file .*absent: no such file. Expected a binaryproto"):
        read_mean(str(tmp_path / "absent"))
    with pytest.raises(FileAccessError, match="cannot be read: Is a directory"):
        read_mean(str(tmp_path))
    (tmp_path / "mean").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"is not a binaryproto file. It begins with b'<html>'"):
        read_mean(str(tmp_path / "mean"))
    with pytest.raises(
        DataError, match=r"mean file .*mean: expected one image, received a blob of shape \(2, 1, 3, 2\)"
    ):
        read_mean(str(mean_file(tmp_path / "mean", 2, 1, 3, 2)))
    with pytest.raises(DataError, match=r"mean file .*mean: a blob of shape \(1, 5, 3, 2\) must hold 30 values"):
        read_mean(str(mean_file(tmp_path / "mean", 1, 5, 3, 2)))


# -- encoded images, with a stand-in for OpenCV (the real one is an extra)


class OpenCV(SimpleNamespace):
    """Decodes 'gray' and 'color' to fixed arrays, and remembers in which mode."""

    IMREAD_UNCHANGED, IMREAD_GRAYSCALE, IMREAD_COLOR = -1, 0, 1

    def imdecode(self, content: np.ndarray, mode: int) -> np.ndarray | None:
        self.mode = mode
        results = {
            b"gray": image(1, 2, 4)[0],
            b"color": image(2, 4, 3),
            b"deep": image(1, 2, 4)[0].astype(np.uint16),
        }
        return results.get(content.tobytes())


def encoded(content: bytes) -> Any:
    return caffe_pb2.Datum(data=content, encoded=True, label=3)


@pytest.fixture
def opencv(monkeypatch: pytest.MonkeyPatch) -> OpenCV:
    module = OpenCV()
    monkeypatch.setitem(sys.modules, "cv2", module)
    return module


@pytest.mark.parametrize(
    ("text", "mode"), [("", -1), ("force_gray: true", 0), ("force_color: true", 1), ("force_gray: false", -1)]
)
def test_encoded_images_are_decoded_as_forced(opencv: OpenCV, text: str, mode: int) -> None:
    transformer(text).image(encoded(b"gray"))
    assert opencv.mode == mode


def test_encoded_colours_become_channels(opencv: OpenCV) -> None:
    np.testing.assert_array_equal(transformer().image(encoded(b"color")), image(2, 4, 3).transpose(2, 0, 1))
    np.testing.assert_array_equal(transformer().image(encoded(b"gray")), image(1, 2, 4))


def test_encoded_images_that_cannot_be_used_are_errors(opencv: OpenCV) -> None:
    with pytest.raises(DataError, match=r"cannot be decoded. It begins with b'garbage!'"):
        transformer().image(encoded(b"garbage!!"))
    with pytest.raises(DataError, match=r"cannot be decoded. It begins with b''"):
        transformer().image(encoded(b""))
    with pytest.raises(DataError, match=r"elements of type uint16. Expected uint8"):
        transformer().image(encoded(b"deep"))


def test_an_encoded_image_without_opencv_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match=r"decoding an image needs .* cv2.*pip install opencv-python-headless"):
        transformer().image(encoded(b"gray"))
