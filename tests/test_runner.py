"""NetRunner: programs recorded once, dropped when a shape changes, and what runs Python in between."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest
from nets import MLP, Copy, build, input_layer, layer, layer_type

from caffe_lite.blob import Blob
from caffe_lite.errors import DataError, NetError, ShapeError
from caffe_lite.net import Net

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
LABEL = np.array([0, 1, 2, 0], np.float32)


def train(net: Net) -> tuple[float, np.ndarray]:
    net.forward(x=X, label=LABEL)
    net.clear_param_diffs()
    net.run_backward()
    return net.loss(), net.params["ip1"][0].diff.copy()


class Counts(Copy):
    """Counts how often `forward` and `reshape` run in Python."""

    forwards = reshapes = 0

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().reshape(bottom, top)
        Counts.reshapes += 1

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().forward(bottom, top)
        Counts.forwards += 1


@pytest.fixture
def counting() -> Net:
    with layer_type(Counts):
        net = build(input_layer(x=(2, 3)) + layer("c", "Custom", "x", "y"))
    Counts.forwards = Counts.reshapes = 0
    return net


def test_layers_run_python_once_and_are_replayed_after_that(counting: Net) -> None:
    for value in (1, 2, 3):
        counting.blobs["x"].data[...] = value
        counting.run_forward()
        assert (counting.blobs["y"].data == value).all()
    assert (Counts.forwards, Counts.reshapes) == (1, 0)


def test_a_new_shape_is_passed_on_and_recorded_anew(counting: Net) -> None:
    counting.run_forward()
    counting.blobs["x"].reshape(5, 7)
    counting.blobs["x"].data[...] = 4
    counting.run_forward()
    counting.run_forward()
    assert counting.blobs["y"].shape == (5, 7)
    assert (counting.blobs["y"].data == 4).all()
    assert (Counts.forwards, Counts.reshapes) == (2, 1)


def test_a_net_without_a_loss_has_a_loss_of_zero(counting: Net) -> None:
    loss = counting._forward(0, 1)
    assert (loss, type(loss)) == (0.0, float)


def test_a_range_of_layers_has_its_own_program(counting: Net) -> None:
    counting.run_forward()
    counting._forward(1, 1)
    counting._forward(1, 1)
    assert Counts.forwards == 2


def test_replayed_passes_give_the_same_bits() -> None:
    net = build(MLP)
    loss, diff = train(net)
    again, diff_again = train(net)
    assert loss == again
    np.testing.assert_array_equal(diff, diff_again)


def test_params_diffs_are_added_to_until_they_are_cleared() -> None:
    net = build(MLP)
    _, once = train(net)
    net.run_backward()
    np.testing.assert_allclose(net.params["ip1"][0].diff, 2 * once, rtol=1e-6)


def test_backward_follows_a_reshape_without_a_forward_pass_between() -> None:
    net = build("force_backward: true " + MLP)
    train(net)
    net.blobs["x"].reshape(2, 6)
    net.blobs["label"].reshape(2)
    net.run_backward()
    assert net.blobs["ip1"].shape == (2, 5)


def test_a_net_works_again_after_an_impossible_shape() -> None:
    net = build(MLP)
    expected, _ = train(net)
    net.blobs["x"].reshape(4, 7)
    with pytest.raises(ShapeError, match=r"layer 'ip1' \(InnerProduct\)"):
        net.run_forward()
    with pytest.raises(ShapeError, match=r"layer 'ip1' \(InnerProduct\)"):
        net.run_backward()
    net.blobs["x"].reshape(4, 6)
    assert train(net)[0] == expected


def test_a_layer_without_a_backward_says_so() -> None:
    class NoBackward(Copy):
        def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
            raise NotImplementedError

    with layer_type(NoBackward):
        net = build("force_backward: true " + input_layer(x=(2,)) + layer("c", "Custom", "x", "y"))
    net.run_forward()
    with pytest.raises(NetError, match=r"layer 'c' \(Custom\): this layer has no backward\. Set propagate_down: false"):
        net.run_backward()


# -- layers that run Python, count passes or check values


class Feeds(Copy):
    """Hands over the next of `batches` before each pass."""

    runs_python = True
    exact_bottoms = 0
    batches: list[np.ndarray] = []  # noqa: RUF012  (a fixture replaces it)
    sought = 0

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape(2, 3)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        pass

    def prepare(self, bottom: list[Blob], top: list[Blob]) -> None:
        if not Feeds.batches:
            raise DataError("no batch is left.")
        batch = Feeds.batches.pop(0)
        top[0].reshape(batch.shape)
        top[0].data[...] = batch

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        pass

    def seek(self, passes: int) -> None:
        Feeds.sought = passes


@pytest.fixture
def fed() -> Net:
    text = layer("first", "Custom", "", "x") + layer("ip", "InnerProduct", "x", "y", IP)
    with layer_type(Feeds):
        return build(text + layer("second", "Custom", "", "z") + layer("relu", "ReLU", "z", "r"))


IP = "inner_product_param { num_output: 2 weight_filler { value: 1 } }"


def batch(value: float, *shape: int) -> np.ndarray:
    return np.full(shape, value, np.float32)


def test_prepare_runs_before_each_pass(fed: Net) -> None:
    for value in (1.0, 2.0, 3.0):
        Feeds.batches = [batch(value, 2, 3), batch(5 * value, 2, 3)]
        fed.run_forward()
        assert (fed.blobs["y"].data == 3 * value).all()
        assert (fed.blobs["r"].data == 5 * value).all()


def test_a_batch_of_another_shape_reshapes_what_follows_within_the_pass(fed: Net) -> None:
    for rows in (2, 5, 5, 1):
        Feeds.batches = [batch(rows, rows, 3), batch(7, rows + 1, 4)]
        fed.run_forward()
        assert fed.blobs["y"].shape == (rows, 2)
        assert (fed.blobs["y"].data == 3 * rows).all()
        assert fed.blobs["r"].shape == (rows + 1, 4)
        assert (fed.blobs["r"].data == 7).all()
        assert not Feeds.batches


def test_a_batch_that_does_not_fit_leaves_the_net_usable(fed: Net) -> None:
    Feeds.batches = [batch(1, 2, 9)]
    with pytest.raises(ShapeError, match="layer 'ip'"):
        fed.run_forward()
    fed.blobs["x"].reshape(2, 3)
    Feeds.batches = [batch(1, 2, 3), batch(1, 2, 3)]
    fed.run_forward()
    assert (fed.blobs["y"].data == 3).all()


def test_errors_of_prepare_name_the_layer(fed: Net) -> None:
    Feeds.batches = []
    with pytest.raises(DataError, match=r"^layer 'first' \(Custom\): no batch is left\."):
        fed.run_forward()


def test_errors_of_check_name_the_layer() -> None:
    class Checks(Copy):
        checks_values = True

        def check(self, bottom: list[Blob]) -> None:
            if bottom[0].data.any():
                raise DataError("a value is not zero.")

    with layer_type(Checks):
        net = build(input_layer(x=(2,)) + layer("c", "Custom", "x", "y"))
    net.run_forward()
    net.blobs["x"].data[1] = 1
    net._forward(0, 0)
    with pytest.raises(DataError, match=r"^layer 'c' \(Custom\): a value is not zero\."):
        net.run_forward()


def test_a_label_that_is_no_class_is_an_error_with_its_place() -> None:
    with pytest.raises(DataError, match=r"^layer 'loss' \(SoftmaxWithLoss\): .*"):
        build(MLP).forward(x=X, label=LABEL + 1)


def passes(net: Net, name: str) -> int:
    buffer = net.layer_dict[name].passes
    assert buffer is not None
    return int(net.device.download(buffer)[0])


@pytest.fixture
def drawing() -> Net:
    class Draws(Copy):
        draws_random = True

    with layer_type(Draws):
        return build(input_layer(x=(2,)) + layer("a", "Custom", "x", "y") + layer("b", "Custom", "y", "z"))


def test_layers_that_draw_count_their_own_forward_passes(drawing: Net) -> None:
    drawing.run_forward()
    drawing.run_forward()
    drawing._forward(2, 2)
    drawing.debug_info = True
    drawing._forward(2, 2)
    assert (passes(drawing, "a"), passes(drawing, "b")) == (2, 4)


def test_seek_sets_the_passes_and_tells_the_layers(drawing: Net, fed: Net) -> None:
    drawing.seek(41)
    drawing.run_forward()
    assert passes(drawing, "a") == 42
    fed.seek(17)
    assert Feeds.sought == 17


# -- loss


def test_loss_sums_weight_times_data_over_all_tops_in_the_range() -> None:
    text = MLP.replace('top: "loss" }', 'top: "loss" loss_weight: 0.5 }')
    text += layer("more", "SoftmaxWithLoss", "ip2 label", "more", "loss_weight: 3")
    net = build(text)
    outputs = net.forward(x=X, label=LABEL)
    loss, more = float(outputs["loss"]), float(outputs["more"])
    assert net.loss() == pytest.approx(0.5 * loss + 3 * more)
    index = net.layer_names.index("loss")
    assert net._forward(0, index) == pytest.approx(0.5 * loss)
    assert net._forward(0, 1) == 0


def test_a_loss_weight_on_a_split_top_gives_the_gradient_it_gave_without_the_split() -> None:
    ip = layer("ip", "InnerProduct", "x", "y", IP + "loss_weight: 2.5")
    plain, split = build(input_layer(x=(2, 3)) + ip), build(input_layer(x=(2, 3)) + ip + layer("s", "Silence", "y"))
    for net in (plain, split):
        net.forward(x=batch(2, 2, 3))
        net.run_backward()
    assert split.layer_names == ["in", "ip", "y_ip_0_split", "s"]
    assert plain.loss() == split.loss() == 2.5 * 4 * 6
    assert (plain.params["ip"][0].diff == 2.5 * 2 * 2).all()
    np.testing.assert_array_equal(plain.params["ip"][0].diff, split.params["ip"][0].diff)


# -- debug_info


def test_debug_info_logs_what_caffe_logs(caplog: pytest.LogCaptureFixture) -> None:
    net = build(MLP)
    train(net)
    net.clear_param_diffs()
    net.debug_info = True
    with caplog.at_level(logging.INFO, "caffe_lite"):
        net.run_forward()
        net.run_backward()

    def mean(array: np.ndarray) -> str:
        return f"{np.abs(array).mean(dtype=np.float64):g}"

    (w1, b1), (w2, b2), blobs = net.params["ip1"], net.params["ip2"], net.blobs
    before_relu = X @ w1.data.T + b1.data
    expected = [
        f"    [Forward] Layer in, top blob x data: {mean(X)}",
        f"    [Forward] Layer in, top blob label data: {mean(LABEL)}",
        f"    [Forward] Layer ip1, top blob ip1 data: {mean(before_relu)}",
        f"    [Forward] Layer ip1, param blob 0 data: {mean(w1.data)}",
        f"    [Forward] Layer ip1, param blob 1 data: {mean(b1.data)}",
        f"    [Forward] Layer relu1, top blob ip1 data: {mean(blobs['ip1'].data)}",
        f"    [Forward] Layer ip2, top blob ip2 data: {mean(blobs['ip2'].data)}",
        f"    [Forward] Layer ip2, param blob 0 data: {mean(w2.data)}",
        f"    [Forward] Layer ip2, param blob 1 data: {mean(b2.data)}",
        f"    [Forward] Layer loss, top blob loss data: {mean(blobs['loss'].data)}",
        f"    [Backward] Layer loss, bottom blob ip2 diff: {mean(blobs['ip2'].diff)}",
        "    [Backward] Layer ip2, bottom blob ip1 diff: ",
        f"    [Backward] Layer ip2, param blob 0 diff: {mean(w2.diff)}",
        f"    [Backward] Layer ip2, param blob 1 diff: {mean(b2.diff)}",
        f"    [Backward] Layer relu1, bottom blob ip1 diff: {mean(blobs['ip1'].diff)}",
        f"    [Backward] Layer ip1, param blob 0 diff: {mean(w1.diff)}",
        f"    [Backward] Layer ip1, param blob 1 diff: {mean(b1.diff)}",
        "    [Backward] All net params (data, diff): L1 norm = (",
    ]
    assert len(caplog.messages) == len(expected)
    for line, start in zip(caplog.messages, expected, strict=True):
        assert line.startswith(start)


def test_debug_info_runs_the_same_computation() -> None:
    plain, debugged = build(MLP), build("debug_info: true " + MLP)
    assert debugged.debug_info
    loss, diff = train(plain)
    debugged_loss, debugged_diff = train(debugged)
    assert loss == debugged_loss
    np.testing.assert_array_equal(diff, debugged_diff)


def test_debug_norms_are_of_all_learnable_params(caplog: pytest.LogCaptureFixture) -> None:
    net = build("debug_info: true " + MLP)
    for blob in net.parameters.blobs:
        blob.data[...] = 0
        blob.diff[...] = 0
    net.params["ip1"][1].data[...] = [3, 0, -4, 0, 0]
    net.debug_info = False
    net.forward(x=np.zeros((4, 6)), label=LABEL)
    net.debug_info = True
    with caplog.at_level(logging.ERROR, "caffe_lite"):
        net.run_backward()
    assert caplog.messages[-1].startswith("    [Backward] All net params (data, diff): L1 norm = (7, ")
    assert "; L2 norm = (5, " in caplog.messages[-1]
