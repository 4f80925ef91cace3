"""NetStructure: what is built from a message, and what is refused."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from nets import MLP, TEST, TRAIN, Copy, allocated, build, input_layer, layer, layer_type, parse

from caffe_lite import graph
from caffe_lite.blob import Blob
from caffe_lite.devices import host_device
from caffe_lite.errors import NetError, OutOfMemoryError, ShapeError
from caffe_lite.layers import Layer
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2
from caffe_lite.serialization import blobproto

IP = "inner_product_param { num_output: 3 weight_filler { type: 'xavier' } }"


def test_layers_blobs_and_their_order_are_caffes() -> None:
    net = build(MLP + layer("acc", "Accuracy", "ip2 label", "acc"))
    assert net.layer_names == [
        "in", "label_in_1_split", "ip1", "relu1", "ip2", "ip2_ip2_0_split", "loss", "acc"
    ]  # fmt: skip
    assert net.blob_names == [
        "x", "label", "label_in_1_split_0", "label_in_1_split_1", "ip1", "ip2", "ip2_ip2_0_split_0",
        "ip2_ip2_0_split_1", "loss", "acc",
    ]  # fmt: skip
    assert net.inputs == ["x", "label"]
    assert net.outputs == ["acc", "loss"]
    assert list(net.params) == ["ip1", "ip2"]
    assert [blob.shape for blob in net.params["ip1"]] == [(5, 6), (5,)]
    assert net.tops[3] == net.bottoms[3] == [net.blobs["ip1"]]


def test_a_layer_inherits_the_nets_phase_unless_it_has_its_own() -> None:
    net = build(input_layer(x=(1,)) + layer("own", "ReLU", "x", "y", "phase: TRAIN"), phase=TEST)
    assert [one.phase for one in net.layers] == [TEST, TRAIN]
    assert net.layers[0].param.phase == TEST


def test_filtered_layers_and_their_params_are_absent() -> None:
    text = MLP + layer("extra", "InnerProduct", "x", "y", IP + " include { stage: 'more' }")
    assert list(build(text).params) == ["ip1", "ip2"]
    assert list(build(text, stage=["more"]).params) == ["ip1", "ip2", "extra"]


def test_a_missing_loss_top_is_made_up() -> None:
    text = MLP.replace('bottom: "label" top: "loss"', 'bottom: "label"')
    net = build(text)
    assert net.blob_names[-1] == "(automatic)"
    assert net.outputs == []
    assert net.forward(x=np.zeros((4, 6)), label=np.zeros(4)) == {}
    assert net.loss() == float(net.blobs["(automatic)"].data) > 0


def test_the_same_seed_gives_the_same_weights_and_each_layer_its_own() -> None:
    first, again, other = build(MLP, seed=1), build(MLP, seed=1), build(MLP, seed=2)
    np.testing.assert_array_equal(first.params["ip1"][0].data, again.params["ip1"][0].data)
    assert (first.params["ip1"][0].data != other.params["ip1"][0].data).any()


def test_a_new_layer_does_not_change_what_the_others_draw() -> None:
    text = layer("extra", "InnerProduct", "x", "y", IP)
    net = build(MLP + text)
    np.testing.assert_array_equal(net.params["ip2"][0].data, build(MLP).params["ip2"][0].data)


def test_blobs_in_the_message_are_the_layers_params() -> None:
    param = parse(MLP)
    weights = np.arange(30, dtype=np.float32).reshape(5, 6)
    param.layer[1].blobs.add().CopyFrom(blobproto.from_array(weights))
    param.layer[1].blobs.add().CopyFrom(blobproto.from_array(np.zeros(5, np.float32)))
    np.testing.assert_array_equal(Net.from_param(param).params["ip1"][0].data, weights)


# -- loss weights


def test_a_loss_layer_has_weight_one_and_it_is_saved_in_its_message() -> None:
    net = build(MLP)
    assert dict(net.blob_loss_weights)["loss"] == 1.0
    assert list(net.layers[-1].param.loss_weight) == [1.0]
    assert float(net.blobs["loss"].diff) == 1.0


def test_any_top_with_a_loss_weight_is_a_loss() -> None:
    net = build(input_layer(x=(2, 6)) + layer("ip", "InnerProduct", "x", "y", IP + " loss_weight: 0.5"))
    assert (net.blobs["y"].diff == 0.5).all()
    outputs = net.forward(x=np.ones((2, 6)))
    assert net.loss() == pytest.approx(0.5 * outputs["y"].sum(), rel=1e-5)


def test_the_diffs_of_a_loss_hold_its_weight_after_it_has_grown() -> None:
    net = build(input_layer(x=(2, 6)) + layer("ip", "InnerProduct", "x", "y", IP + " loss_weight: 0.5"))
    net.forward(x=np.ones((20, 6)))
    assert net.blobs["y"].diff.shape == (20, 3)
    assert (net.blobs["y"].diff == 0.5).all()


def test_a_loss_weight_moved_to_a_split_is_counted_once() -> None:
    text = MLP.replace('top: "loss" }', 'top: "loss" loss_weight: 2 }') + layer("s", "Silence", "loss")
    net = build(text)
    loss = float(net.forward(x=np.ones((4, 6)), label=np.zeros(4)).get("loss", net.blobs["loss"].data))
    assert net.loss() == pytest.approx(2 * loss)


# -- who needs a gradient


def needs(net: Net) -> dict[str, bool]:
    return dict(zip(net.layer_names, net.layer_need_backward, strict=True))


def test_lr_mult_zero_takes_a_layer_out_of_the_backward_pass() -> None:
    frozen = MLP.replace("num_output: 5", "num_output: 5").replace(
        'top: "ip1"\n', 'top: "ip1" param { lr_mult: 0 } param { lr_mult: 0 }\n'
    )
    assert needs(build(MLP)) == {"in": False, "ip1": True, "relu1": True, "ip2": True, "loss": True}
    assert needs(build(frozen)) == {"in": False, "ip1": False, "relu1": False, "ip2": True, "loss": True}
    assert build(frozen).layers[1].param_propagate_down == [False, False]


def test_force_backward_runs_every_layer_and_reaches_the_input_but_not_the_label() -> None:
    net = build("force_backward: true " + MLP)
    assert all(net.layer_need_backward)
    assert net.bottom_need_backward == [[], [True], [True], [True], [True, False]]


def test_diffs_that_no_backward_pass_writes_are_never_allocated() -> None:
    net = build(MLP)
    net.forward(x=np.ones((4, 6)), label=np.zeros(4))
    assert not net.blobs["ip1"].has_diff
    net.run_backward()
    assert net.blobs["ip1"].has_diff
    assert not net.blobs["x"].has_diff
    assert not net.blobs["label"].has_diff


def test_in_place_tops_and_splits_hold_their_data_once() -> None:
    text = (
        input_layer(x=(1000,)) + layer("r", "ReLU", "x", "x") + layer("a", "Silence", "x") + layer("b", "Silence", "x")
    )
    before = allocated()
    net = build(text)
    net.run_forward()
    assert allocated() == before + 4000


# -- the log


def test_the_log_of_building_is_caffes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "caffe_lite"):
        build(MLP)
    lines = caplog.messages
    assert lines[0].startswith('Initializing net from parameters: \nname: "mlp"\nstate {\n  phase: TRAIN\n}\nlayer {\n')
    assert lines[1:] == [
        "Creating layer in", "Creating Layer in", "in -> x", "in -> label",
        "Setting up in", "Top shape: 4 6 (24)", "Top shape: 4 (4)", "Memory required for data: 112",
        "Creating layer ip1", "Creating Layer ip1", "ip1 <- x", "ip1 -> ip1",
        "Setting up ip1", "Top shape: 4 5 (20)", "Memory required for data: 192",
        "Creating layer relu1", "Creating Layer relu1", "relu1 <- ip1", "relu1 -> ip1 (in-place)",
        "Setting up relu1", "Top shape: 4 5 (20)", "Memory required for data: 272",
        "Creating layer ip2", "Creating Layer ip2", "ip2 <- ip1", "ip2 -> ip2",
        "Setting up ip2", "Top shape: 4 3 (12)", "Memory required for data: 320",
        "Creating layer loss", "Creating Layer loss", "loss <- ip2", "loss <- label", "loss -> loss",
        "Setting up loss", "Top shape: (1)", "    with loss weight 1", "Memory required for data: 324",
        "loss needs backward computation.", "ip2 needs backward computation.",
        "relu1 needs backward computation.", "ip1 needs backward computation.",
        "in does not need backward computation.",
        "This network produces output loss", "Network initialization done.",
    ]  # fmt: skip


def original_log(phase: str) -> tuple[str, list[str]]:
    """Return the net that the original printed for LeNet in `phase`, and what it logged while building it."""
    log = (Path(__file__).parent / "reference" / "logs" / "lenet_caffe_train.log").read_text()
    entries = re.findall(
        r"^I\d{4} \S+ +\d+ (net\.cpp|layer_factory\.hpp):\d+\] (.*(?:\n(?![IWEF]\d{4} ).*)*)", log, re.M
    )
    texts = [text for _, text in entries]
    start = next(i for i, text in enumerate(texts) if "Initializing net" in text and f"phase: {phase}" in text[:90])
    end = texts.index("Network initialization done.", start)
    return texts[start].partition("\n")[2], texts[start + 1 : end + 1]


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_the_log_of_lenet_is_the_originals(phase: str, caplog: pytest.LogCaptureFixture) -> None:
    text, expected = original_log(phase)
    last = len(expected) - expected[::-1].index("Creating layer loss") - 1
    del expected[last]  # the original's loss makes a Softmax layer inside, and says so again
    param = text_format.Parse(text, caffe_pb2.NetParameter())
    assert graph.text_of(param).rstrip() == text.rstrip()
    batch = param.layer[0].data_param.batch_size
    images = parse(input_layer(data=(batch, 1, 28, 28), label=(batch,))).layer[0]
    images.name = "mnist"
    param.layer[0].CopyFrom(images)
    with caplog.at_level(logging.INFO, "caffe_lite"):
        Net.from_param(param)
    assert caplog.messages[1:] == expected


# -- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            layer("c", "Convolutoin", "x", "y"),
            "'c' (Convolutoin): unknown layer type 'Convolutoin'. Did you mean 'Convol",
        ),
        (layer("c", "Zebra", "x", "y"), "unknown layer type 'Zebra'. Known types: AbsVal, Accuracy,"),
        (layer("c", "", "x", "y"), "layer 'c' (): the layer has no type. Known types: AbsVal, Accuracy,"),
        (layer("l", "SoftmaxWithLoss", "x", "y"), "wrong number of bottoms. Expected 2, received 1: 'x' (2, 3)."),
        (layer("s", "Silence"), "wrong number of bottoms. Expected at least 1, received 0."),
        (layer("s", "Silence", "x", "y"), "wrong number of tops. Expected 0, received 1: 'y'."),
        (layer("i", "Input"), "wrong number of tops. Expected at least 1, received 0."),
        (
            layer("i", "InnerProduct", "x", "x", IP),
            "top 'x' is also the bottom, but this layer does not work in place.",
        ),
        (
            layer("r", "ReLU", "x", "y", "loss_weight: 1 loss_weight: 2"),
            "loss_weight must be given once per top or not at all. Expected 1, received 2.",
        ),
        (
            layer("r", "ReLU", "x", "y", "propagate_down: true propagate_down: true"),
            "propagate_down must be given once per bottom or not at all. Expected 1, received 2.",
        ),
        (
            layer("i", "InnerProduct", "x", "y", IP + "param {} param {} param {}"),
            "layer 'i' (InnerProduct): too many param entries. Expected at most 2, received 3.",
        ),
    ],
)
def test_a_net_that_cannot_be_built_says_why(text: str, message: str) -> None:
    with pytest.raises(NetError, match=re.escape(message)):
        build(input_layer(x=(2, 3)) + text)


def test_too_many_bottoms_are_refused() -> None:
    class AtMostTwo(Copy):
        exact_bottoms = None
        max_bottoms = 2

    with layer_type(AtMostTwo), pytest.raises(NetError, match=r"bottoms\. Expected at most 2, received 3"):
        build(input_layer(x=(2,)) + layer("c", "Custom", "x x x", "y"))


def test_a_layer_with_a_top_for_each_bottom_refuses_another_number() -> None:
    class Pairs(Copy):
        exact_bottoms = None
        equal_bottoms_and_tops = True

    with layer_type(Pairs), pytest.raises(NetError, match=r"of the 2 bottoms 'x_.*' \(2,\), .*, received 1: 'y'."):
        build(input_layer(x=(2,)) + layer("c", "Custom", "x x", "y"))


def test_two_layers_with_params_and_one_name_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    build(input_layer(x=(2, 3)) + layer("r", "ReLU", "x", "y") + layer("r", "ReLU", "y", "z"))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    build(input_layer(x=(2, 3)) + layer("ip", "InnerProduct", "x", "y", IP) + layer("ip", "InnerProduct", "x", "z", IP))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "layer 'ip' (InnerProduct): layer 'ip' (InnerProduct) has the same name. "
        "Rename one: files of weights tell layers apart by name."
    ]


def test_errors_name_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(input_layer(x=(2, 3)) + "\n\n" + layer("pool", "Pooling", "x", "y"))
    with pytest.raises(NetError, match=rf"^{re.escape(str(path))}:4: layer 'pool' \(Pooling\): "):
        Net(path, TRAIN)


def test_an_unknown_bottom_names_the_excluded_layers_state(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        "layer { name: 'd' type: 'Input' top: 'd' include { phase: TRAIN } }\n" + layer("s", "Silence", "d")
    )
    with pytest.raises(NetError, match=r"net\.prototxt:2: layer 's' \(Silence\): .*phase TEST\) excludes layer 'd'"):
        Net(path, TEST)


def test_shape_errors_of_a_layer_stay_shape_errors() -> None:
    with pytest.raises(ShapeError, match=r"layer 'loss' \(SoftmaxWithLoss\): "):
        build(MLP.replace("shape { dim: 4 } }", "shape { dim: 5 } }"))


class Opens(Copy):
    """Counts the layers of its type that are open."""

    open = 0

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        Opens.open += 1

    def close(self) -> None:
        Opens.open -= 1


def test_a_net_that_cannot_be_built_closes_the_layers_it_had() -> None:
    with layer_type(Opens), pytest.raises(NetError):
        build(input_layer(x=(2,)) + layer("o", "Custom", "x", "y") + layer("l", "SoftmaxWithLoss", "y", "z"))
    assert Opens.open == 0


def test_closing_a_net_closes_its_layers_once() -> None:
    with layer_type(Opens):
        net = build(input_layer(x=(2,)) + layer("o", "Custom", "x", "y"))
    assert Opens.open == 1
    net.close()
    net.close()
    assert Opens.open == 0


def test_running_out_of_memory_names_the_layer_and_the_largest_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build(
        input_layer(small=(2,), x=(100, 60))
        + layer("ip", "InnerProduct", "x", "y", IP)
        + layer("s", "Silence", "small")
    )
    limit_memory(monkeypatch, 300)
    with pytest.raises(
        OutOfMemoryError, match=r"layer 'ip' \(InnerProduct\): .*largest blobs: 'x' \(100, 60\) 0.0 MiB, 'y'"
    ):
        net.run_forward()


def test_running_out_of_memory_for_the_params_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, 500)
    with pytest.raises(OutOfMemoryError, match="the params of net 'mlp': no memory"):
        build(MLP)


def limit_memory(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """Let the host device refuse buffers of more than `elements`."""
    device = host_device()
    alloc = device.alloc

    def refuse(size: int, *dtype: Any) -> Any:
        if size > elements:
            raise OutOfMemoryError("no memory.")
        return alloc(size, *dtype)

    monkeypatch.setattr(device, "alloc", refuse)


def test_layers_find_their_own_random_generator() -> None:
    class Draws(Copy):
        draws_random = True

    with layer_type(Draws):
        net = build(input_layer(x=(2,)) + layer("a", "Custom", "x", "y") + layer("b", "Custom", "y", "z"))
    first, second = net.layers[1:]
    assert isinstance(first, Layer)
    assert first.seed != second.seed
    assert first.passes is not None
    assert first.passes is not second.passes
    assert net.layers[0].passes is None
