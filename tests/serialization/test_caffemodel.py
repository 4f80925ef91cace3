"""Weights are read from, and written as, the files of the original Caffe, and what does not fit is said at once."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from caffe_lite.errors import CaffeError, FileAccessError, MissingFileError, WeightsError
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2
from caffe_lite.serialization import blobproto, caffemodel, message

TRAINING = Path(__file__).resolve().parents[1] / "reference" / "training"
LENET = TRAINING / "lenet" / "lenet_iter_200.caffemodel"
MLP = TRAINING / "solvers" / "sgd_fixed_iter_15.caffemodel"
STATE = TRAINING / "solvers" / "sgd_fixed_iter_15.solverstate"

NET = """
name: "small"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 2 dim: 196 }} }} }}
layer {{
  name: "{first}" type: "InnerProduct" bottom: "data" top: "ip1"
  inner_product_param {{ num_output: {outputs} weight_filler {{ type: "xavier" }} }}
}}
layer {{ name: "relu" type: "ReLU" bottom: "ip1" top: "ip1" }}
layer {{
  name: "{second}" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param {{ num_output: 10 bias_term: {bias} weight_filler {{ type: "xavier" }} }}
}}
"""

MakeNet = Callable[..., Net]


@pytest.fixture
def make_net(tmp_path: Path) -> Iterator[MakeNet]:
    """Give a function that builds the net above; by default the weights in `MLP` fit it."""
    made = []

    def make(first: str = "ip1", second: str = "ip2", outputs: int = 24, bias: str = "true") -> Net:
        path = tmp_path / "net.prototxt"
        path.write_text(NET.format(first=first, second=second, outputs=outputs, bias=bias))
        made.append(Net(path, caffe_pb2.TEST))
        return made[-1]

    yield make
    for net in made:
        net.close()


def weights_of(net: Net) -> dict[str, list[np.ndarray[Any, Any]]]:
    return {name: [blob.data.copy() for blob in blobs] for name, blobs in net.params.items()}


def write_net(path: Path, **layers: list[Any]) -> Path:
    """Write a ``.caffemodel`` of `layers`: name to blobs."""
    net_param = caffe_pb2.NetParameter(name="file")
    for name, blobs in layers.items():
        net_param.layer.add(name=name, blobs=[blobproto.from_array(blob) for blob in blobs])
    path.write_bytes(net_param.SerializeToString())
    return path


# -- reading


def test_the_weights_that_caffe_wrote_are_read() -> None:
    layers = caffemodel.read(LENET)
    expected = caffe_pb2.NetParameter.FromString(LENET.read_bytes())
    assert [name for name, _ in layers] == [layer.name for layer in expected.layer]
    for (_, arrays), layer in zip(layers, expected.layer, strict=True):
        assert [array.shape for array in arrays] == [tuple(blob.shape.dim) for blob in layer.blobs]
        for array, blob in zip(arrays, layer.blobs, strict=True):
            np.testing.assert_array_equal(array.ravel(), np.array(list(blob.data), np.float32))


def test_v1_files_are_read() -> None:
    net_param = caffe_pb2.NetParameter()
    net_param.layers.add(name="ip", type="INNER_PRODUCT").blobs.add(num=1, channels=1, height=1, width=2, data=[1, 2])
    check_old_format(net_param)


def test_v0_files_are_read() -> None:
    net_param = caffe_pb2.NetParameter()
    layer = net_param.layers.add().layer
    layer.name, layer.type = "ip", "innerproduct"
    layer.blobs.add(num=1, channels=1, height=1, width=2, data=[1, 2])
    check_old_format(net_param)


def check_old_format(net_param: Any) -> None:
    layers = list(caffemodel.layers_of(message.wire_class("NetParameter").FromString(net_param.SerializeToString())))
    assert [name for name, _ in layers] == ["ip"]
    array = blobproto.to_array(layers[0][1][0])
    assert array.shape == (1, 1, 1, 2)
    np.testing.assert_array_equal(array.ravel(), [1, 2])


def test_unknown_fields_do_no_harm(tmp_path: Path) -> None:
    path = write_net(tmp_path / "file", ip=[[1, 2]])
    path.write_bytes(path.read_bytes() + b"\xfa\xff\xff\x0f\x03abc")  # field 33554431, of no schema
    assert caffemodel.read(path)[0][0] == "ip"


def test_a_blob_with_too_few_values_names_file_and_layer(tmp_path: Path) -> None:
    net_param = caffe_pb2.NetParameter()
    net_param.layer.add(name="ip1").blobs.add(data=[1, 2]).shape.dim.extend([3])
    (tmp_path / "file").write_bytes(net_param.SerializeToString())
    with pytest.raises(WeightsError, match=r"file: layer 'ip1': a blob of shape \(3,\) must hold 3 values. Received 2"):
        caffemodel.read(tmp_path / "file")


# -- files of another kind


@pytest.mark.parametrize(
    ("data", "description"),
    [
        (b"", "an empty file"),
        (b"name: 'LeNet'", "a text prototxt"),
        (b"<!DOCTYPE html><html>", "an HTML page, as a failed download leaves it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer .*`git lfs pull`"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"PK\x03\x04", "a zip archive"),
        (STATE.read_bytes(), r"the state of a solver \(.solverstate\)"),
        (blobproto.from_array([1, 2, 3]).SerializeToString(), r"a single blob \(.binaryproto, as an image mean"),
    ],
)
def test_a_file_of_another_kind_says_what_it_looks_like(tmp_path: Path, data: bytes, description: str) -> None:
    (tmp_path / "file").write_bytes(data)
    expected = rf"file is not the weights of a net \(.caffemodel\). It looks like {description}"
    with pytest.raises(WeightsError, match=expected):
        caffemodel.read(tmp_path / "file")


@pytest.mark.parametrize("data", [b"\xff" * 30, bytes(30), b"\x0a\x03net", b"\x0a\x03net" + b"\xff" * 30])
def test_bytes_that_make_no_sense_are_called_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(
        WeightsError, match=r"not the weights of a net \(.caffemodel\), or it is damaged: its \d+ bytes"
    ):
        caffemodel.read(tmp_path / "file")


def test_a_file_that_is_cut_off_says_how_much_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(LENET.read_bytes()[:1_000_000])
    with pytest.raises(WeightsError, match=r"file is cut off after 1000000 bytes: at least \d{6} more belong to it"):
        caffemodel.read(tmp_path / "file")


def test_a_file_cut_off_anywhere_is_refused_or_holds_the_layers_before_the_cut(tmp_path: Path) -> None:
    data = write_net(tmp_path / "file", ip1=[[1, 2], [3]], relu=[], ip2=[[4, 5]]).read_bytes()
    names = ["ip1", "relu", "ip2"]
    whole = 0
    for size in range(len(data)):
        (tmp_path / "file").write_bytes(data[:size])
        with contextlib.suppress(WeightsError):
            layers = caffemodel.read(tmp_path / "file")
            assert [name for name, _ in layers] == names[: len(layers)]
            whole += 1
    assert whole == 2  # after the first and the second layer


def test_any_damage_to_a_byte_is_an_error_of_ours_or_none(tmp_path: Path) -> None:
    data = write_net(tmp_path / "file", ip1=[[1, 2], [3]], ip2=[[4, 5]]).read_bytes()
    for position in range(len(data)):
        for value in (0, 0x7F, 0xFF):
            (tmp_path / "file").write_bytes(data[:position] + bytes([value]) + data[position + 1 :])
            with contextlib.suppress(CaffeError):
                caffemodel.read(tmp_path / "file")


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no such file"):
        caffemodel.read(tmp_path / "nothing")


def test_a_database_given_as_weights_is_recognized(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path / "db")).close()
    with pytest.raises(FileAccessError, match=r"db is an LMDB database. Expected a file"):
        caffemodel.read(tmp_path / "db")


def test_a_file_over_two_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**31)  # a hole: it takes no space
    with pytest.raises(
        WeightsError, match=r"file: 2147483648 bytes are too many. Expected at most 2147483647 \(2 GiB\)"
    ):
        caffemodel.read(tmp_path / "file")


# -- copying into a net


def test_weights_are_copied_by_layer_name(make_net: MakeNet) -> None:
    net = make_net()
    caffemodel.copy_to(net, MLP)
    for name, arrays in caffemodel.read(MLP):
        for blob, array in zip(net.params.get(name, []), arrays, strict=True):
            np.testing.assert_array_equal(blob.data, array)


def test_layers_that_the_file_lacks_keep_their_weights(make_net: MakeNet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "caffe_lite")
    net = make_net(second="new")
    before = weights_of(net)
    caplog.clear()
    caffemodel.copy_to(net, MLP)
    np.testing.assert_array_equal(net.params["new"][0].data, before["new"][0])
    assert not np.array_equal(net.params["ip1"][0].data, before["ip1"][0])
    assert caplog.messages == [f"Ignoring source layer {name}" for name in ("tanh", "ip2", "loss")]


def test_old_files_with_four_axes_fit(make_net: MakeNet, tmp_path: Path) -> None:
    net = make_net()
    weights = np.random.default_rng(1).normal(size=(1, 1, 10, 24)).astype(np.float32)
    bias = np.arange(10, dtype=np.float32).reshape(1, 1, 1, 10)
    caffemodel.copy_to(net, write_net(tmp_path / "file", ip2=[weights, bias]))
    np.testing.assert_array_equal(net.params["ip2"][0].data, weights[0, 0])
    np.testing.assert_array_equal(net.params["ip2"][1].data, bias[0, 0, 0])


@pytest.mark.parametrize(
    ("wanted", "found", "agree"),
    [
        ((10,), (1, 1, 1, 10), True),
        ((1, 10), (1, 1, 1, 10), True),
        ((), (1, 1, 1, 1), True),
        ((10, 24), (10, 24), True),
        ((10, 24), (24, 10), False),
        ((10, 24), (10, 24, 1, 1), False),
        ((240,), (1, 1, 10, 24), False),
        ((10,), (1, 10), False),
    ],
)
def test_only_four_axes_may_lead_with_ones(wanted: tuple[int, ...], found: tuple[int, ...], agree: bool) -> None:
    assert caffemodel.shapes_agree(wanted, found) is agree


def test_all_params_that_do_not_fit_are_in_one_table_and_nothing_is_copied(make_net: MakeNet, tmp_path: Path) -> None:
    net = make_net(outputs=20, bias="false")
    before = weights_of(net)
    path = write_net(tmp_path / "file", relu=[], ip1=[np.ones((24, 196)), np.ones(20)], ip2=[np.ones((10, 24)), [1]])
    with pytest.raises(WeightsError) as caught:
        caffemodel.copy_to(net, path)
    assert str(caught.value).splitlines() == [
        f"{path}: the shapes of 3 params do not fit the net, nothing was copied.",
        "  layer  param  net        file",
        "  ip1    0      (20, 196)  (24, 196)",
        "  ip2    0      (10, 20)   (10, 24)",
        "  ip2    1      none       (1)",
        "To learn such a layer from scratch, give it another name in the net's prototxt.",
    ]
    for name, arrays in before.items():
        for array, blob in zip(arrays, net.params[name], strict=True):
            np.testing.assert_array_equal(blob.data, array)


def test_a_param_that_the_file_lacks_is_in_the_table(make_net: MakeNet, tmp_path: Path) -> None:
    path = write_net(tmp_path / "file", ip2=[np.ones((10, 24))])
    with pytest.raises(WeightsError, match=r"the shapes of 1 param does not fit(.|\n)*ip2    1      \(10\)  none"):
        caffemodel.copy_to(make_net(), path)


def test_a_file_that_matches_no_layer_warns_with_the_names_on_both_sides(
    make_net: MakeNet, caplog: pytest.LogCaptureFixture
) -> None:
    caffemodel.copy_to(make_net(first="fc1", second="fc2"), MLP)
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        f"{MLP}: no weights were copied, because no layer with params has the name of one in the net. "
        "Layers in the file: ip1, ip2. Layers in the net: fc1, fc2."
    ]


# -- writing


def test_what_is_written_is_byte_for_byte_what_caffe_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_blank_digits(tmp_path / "mnist_train_lmdb")
    with contextlib.closing(Net(TRAINING / "lenet" / "train_test.prototxt", caffe_pb2.TRAIN, weights=LENET)) as net:
        caffemodel.write("ours", net)
    ours, theirs = (caffe_pb2.NetParameter.FromString(Path(path).read_bytes()) for path in ("ours", LENET))
    assert [layer.name for layer in ours.layer] == [layer.name for layer in theirs.layer]
    for layer, expected in zip(ours.layer, theirs.layer, strict=True):
        assert layer == expected, layer.name
    assert Path("ours").read_bytes() == LENET.read_bytes()


def write_blank_digits(path: Path) -> None:
    datum = caffe_pb2.Datum(channels=1, height=28, width=28, label=0, data=bytes(784)).SerializeToString()
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        for index in range(64):
            transaction.put(b"%08d" % index, datum)


def test_diffs_are_written_on_request(make_net: MakeNet, tmp_path: Path) -> None:
    net = make_net()
    net.params["ip1"][1].diff[...] = np.arange(24)
    caffemodel.write(tmp_path / "file", net, write_diff=True)
    layers = {layer.name: layer for layer in caffe_pb2.NetParameter.FromString((tmp_path / "file").read_bytes()).layer}
    assert list(layers["ip1"].blobs[1].diff) == list(range(24))
    caffemodel.write(tmp_path / "file", net)
    assert not any(
        blob.diff
        for layer in caffe_pb2.NetParameter.FromString((tmp_path / "file").read_bytes()).layer
        for blob in layer.blobs
    )


def test_a_net_too_large_for_a_file_is_refused(
    make_net: MakeNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_net()
    monkeypatch.setattr(message, "SIZE_LIMIT", 100)
    with pytest.raises(WeightsError, match=r"file: \d+ bytes are too many. Expected at most 100"):
        caffemodel.write(tmp_path / "file", net)
    monkeypatch.setattr(message, "SIZE_LIMIT", 4 * sum(blob.count for blobs in net.params.values() for blob in blobs))
    with pytest.raises(WeightsError, match=r"file: \d+ bytes are too many"):  # with names and shapes
        caffemodel.write(tmp_path / "file", net)
    assert not (tmp_path / "file").exists()


def test_weights_that_cannot_be_written_are_an_error(make_net: MakeNet, tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"cannot be written: the folder '.*nowhere' does not exist"):
        caffemodel.write(tmp_path / "nowhere" / "file", make_net())
