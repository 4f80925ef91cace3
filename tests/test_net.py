"""Net: pycaffe's constructors, names, forward and backward; weights; LeNet against the original."""

from __future__ import annotations

import gc
import re
import timeit
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import MLP, TEST, TRAIN, Copy, allocated, build, input_layer, layer, layer_type, parse
from reference import recipe

import caffe_lite
from caffe_lite.devices import host_device
from caffe_lite.errors import MissingFileError, ShapeError, UsageError
from caffe_lite.net import Net
from caffe_lite.parameters import ROW

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
LABEL = np.array([0, 1, 2, 0], np.float32)
REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture
def net() -> Net:
    return build(MLP)


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.prototxt"
    path.write_text(MLP + layer("acc", "Accuracy", "ip2 label", "acc", "include { phase: TEST stage: 'eval' }"))
    return path


# -- constructors


def test_a_net_is_built_from_a_file_in_a_phase_and_stages(mlp: Path) -> None:
    assert Net(mlp, TRAIN).phase == TRAIN
    assert "acc" not in Net(str(mlp), TEST).layer_dict
    assert "acc" in Net(mlp, TEST, stages=["eval"]).layer_dict
    assert "acc" not in Net(mlp, TRAIN, 0, ["eval"]).layer_dict


def test_the_level_admits_layers(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(input_layer(x=(1,)) + layer("r", "ReLU", "x", "y", "include { min_level: 2 }"))
    assert len(Net(path, TEST, level=1).layers) == 1
    assert len(Net(path, TEST, level=2).layers) == 2


def test_both_of_pycaffes_forms_load_weights(mlp: Path, tmp_path: Path) -> None:
    trained = Net(mlp, TRAIN)
    weights = tmp_path / "mlp.caffemodel"
    trained.save(weights)
    for loaded in (Net(mlp, weights, TEST), Net(str(mlp), str(weights), TEST), Net(mlp, TEST, weights=weights)):
        assert loaded.phase == TEST
        np.testing.assert_array_equal(loaded.params["ip2"][0].data, trained.params["ip2"][0].data)


def test_a_net_whose_weights_do_not_load_is_closed(tmp_path: Path) -> None:
    closed: list[str] = []

    class Closes(Copy):
        def close(self) -> None:
            closed.append(self.name)

    path = tmp_path / "net.prototxt"
    path.write_text(input_layer(x=(1,)) + layer("c", "Custom", "x", "y"))
    with layer_type(Closes), pytest.raises(MissingFileError):
        Net(path, TEST, weights=tmp_path / "none.caffemodel")
    assert closed == ["c"]


def test_copy_from_reads_what_save_wrote(net: Net, tmp_path: Path) -> None:
    net.save(tmp_path / "w.caffemodel")
    other = build(MLP, seed=5)
    other.copy_from(tmp_path / "w.caffemodel")
    np.testing.assert_array_equal(other.params["ip1"][0].data, net.params["ip1"][0].data)


def test_a_missing_file_is_a_missing_file_error() -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.prototxt"):
        Net("nowhere.prototxt", TEST)


def test_an_unknown_phase_is_refused(mlp: Path) -> None:
    with pytest.raises(UsageError, match=r"phase must be TRAIN \(0\) or TEST \(1\)\. Received 7\."):
        Net(mlp, 7)


def test_from_param_leaves_the_message_as_it_was() -> None:
    param = parse(MLP)
    before = param.SerializeToString()
    Net.from_param(param)
    assert param.SerializeToString() == before


def test_set_random_seed_repeats_the_nets_that_follow(mlp: Path) -> None:
    weights = []
    for _ in range(2):
        caffe_lite.set_random_seed(3)
        weights.append([Net(mlp, TRAIN).params["ip1"][0].data for _ in range(2)])
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0][0] != weights[0][1]).any()


# -- names


def test_names_of_layers_tops_and_bottoms(net: Net) -> None:
    assert net._layer_names == net.layer_names == list(net.layer_dict)
    assert net._blob_names == list(net.blobs)
    assert net.top_names["in"] == ["x", "label"]
    assert net.bottom_names["loss"] == ["ip2", "label"]
    assert net.layer_dict["ip1"].type == "InnerProduct"
    assert net.layer_dict["ip1"].blobs == net.params["ip1"]


def test_repr_is_a_line_for_the_prompt(net: Net) -> None:
    assert repr(net) == "<Net 'mlp' TRAIN: 5 layers, 53 weights, x (4, 6), label (4,) -> loss ()>"
    assert repr(build("")) == "<Net '' TRAIN: 0 layers, 0 weights, nothing -> nothing>"


# -- forward


def test_forward_computes_the_outputs_of_the_inputs(net: Net) -> None:
    outputs = net.forward(x=X, label=LABEL)
    (w1, b1), (w2, b2) = ([blob.data.astype(np.float64) for blob in net.params[name]] for name in ("ip1", "ip2"))
    scores = np.maximum(X @ w1.T + b1, 0) @ w2.T + b2
    log_sum = np.log(np.exp(scores).sum(axis=1))
    expected = np.mean(log_sum - scores[np.arange(4), LABEL.astype(int)])
    assert set(outputs) == {"loss"}
    assert float(outputs["loss"]) == pytest.approx(expected, rel=1e-5)


def test_outputs_show_the_blobs_own_memory(net: Net) -> None:
    first = net.forward(x=X, label=LABEL)["loss"]
    value = float(first)
    net.forward(x=-X, label=LABEL)
    assert float(first) != value


def test_forward_returns_the_blobs_that_are_asked_for(net: Net) -> None:
    assert set(net.forward(blobs=["ip1", "x"])) == {"loss", "ip1", "x"}


@pytest.mark.parametrize(("start", "end"), [("ip1", "relu1"), (1, 2)])
def test_forward_of_a_range_returns_the_tops_of_its_end(net: Net, start: str | int, end: str | int) -> None:
    net.blobs["x"].data[...] = X
    net.blobs["ip2"].data[...] = 7
    outputs = net.forward(start=start, end=end)
    assert set(outputs) == {"ip1"}
    assert outputs["ip1"].any()
    assert (net.blobs["ip2"].data == 7).all()


def test_forward_from_a_layer_uses_the_blobs_as_they_are(net: Net) -> None:
    net.forward(x=X, label=LABEL)
    net.blobs["ip1"].data[...] = 0
    assert net.forward(start="ip2")["loss"] == pytest.approx(np.log(3))


def test_an_input_of_another_batch_size_reshapes_the_net(net: Net) -> None:
    whole = net.forward(x=X, label=LABEL, blobs=["ip2"])["ip2"].copy()
    for rows in (1, 3, 4):
        part = net.forward(x=X[:rows], label=LABEL[:rows], blobs=["ip2"])["ip2"]
        np.testing.assert_allclose(part, whole[:rows], rtol=1e-5, atol=1e-6)


def test_inputs_are_converted_and_broadcast_within_the_batch_size() -> None:
    net = build(input_layer(x=(2, 3)) + layer("r", "ReLU", "x", "y"))
    np.testing.assert_array_equal(net.forward(x=[[1, 2, 3], [4, 5, 6]])["y"], [[1, 2, 3], [4, 5, 6]])
    single = build(input_layer(x=(1, 2, 2)) + layer("r", "ReLU", "x", "y"))
    np.testing.assert_array_equal(single.forward(x=np.array([3.0]))["y"], np.full((1, 2, 2), 3))


@pytest.mark.parametrize("shape", [(4,), (3,), (2, 2, 6)])
def test_an_input_of_other_axes_is_refused(net: Net, shape: tuple[int, ...]) -> None:
    message = f"the array for blob 'x' does not fit. Expected (4, 6), received {shape}."
    with pytest.raises(ShapeError, match=re.escape(message)):
        net.forward(x=np.zeros(shape), label=LABEL)
    net.forward(x=X, label=LABEL)


def test_inputs_that_are_not_the_nets_are_refused(net: Net) -> None:
    message = "the arguments are not the net's inputs. Expected x, label, received data, label."
    with pytest.raises(UsageError, match=re.escape(message)):
        net.forward(data=X, label=LABEL)
    with pytest.raises(UsageError, match="Expected none, received x"):
        build(layer("d", "DummyData", "", "d", "dummy_data_param { shape { dim: 1 } }")).forward(x=X)


def test_a_shape_that_a_layer_refuses_leaves_the_net_usable(net: Net) -> None:
    expected = float(net.forward(x=X, label=LABEL)["loss"])
    with pytest.raises(ShapeError, match="layer 'ip1'"):
        net.forward(x=np.zeros((4, 7)), label=LABEL)
    assert float(net.forward(x=X, label=LABEL)["loss"]) == expected


def test_unknown_layers_and_blobs_are_refused_with_the_nearest_name(net: Net) -> None:
    with pytest.raises(UsageError, match=r"the net has no layer 'ipp2'\. Did you mean 'ip2'"):
        net.forward(end="ipp2")
    with pytest.raises(UsageError, match=r"the net has no blob 'zebra'\. It has x, label, ip1, ip2, loss\."):
        net.forward(blobs=["zebra"])


@pytest.mark.parametrize(
    "call",
    [lambda n: n._forward(0, 5), lambda n: n._backward(5, 0), lambda n: n.forward(end=5), lambda n: n._forward(-1, 0)],
)
def test_layers_outside_the_net_are_refused(net: Net, call: Any) -> None:
    with pytest.raises(UsageError, match=r"do not all exist\. Expected indices from 0 to 4\."):
        call(net)


# -- backward


def test_backward_returns_the_diffs_of_the_inputs() -> None:
    net = build("force_backward: true " + MLP)
    net.forward(x=X, label=LABEL)
    diffs = net.backward(diffs=["ip2"])
    assert set(diffs) == {"x", "label", "ip2"}
    step = np.float32(1e-2) * np.sign(X + 0.01)
    higher, lower = (float(net.forward(x=X + s, label=LABEL)["loss"]) for s in (step, -step))
    assert (higher - lower) / 2 == pytest.approx(float((diffs["x"] * step).sum()), rel=2e-2)


def test_backward_takes_the_diffs_of_the_outputs(net: Net) -> None:
    net.forward(x=X, label=LABEL)
    net.backward()
    plain = net.params["ip1"][0].diff.copy()
    net.clear_param_diffs()
    net.backward(loss=np.float32(3))
    np.testing.assert_allclose(net.params["ip1"][0].diff, 3 * plain, rtol=1e-5)


def test_backward_of_a_range_returns_the_bottom_diffs_of_its_end(net: Net) -> None:
    net.forward(x=X, label=LABEL)
    assert set(net.backward(end="ip2")) == {"ip1"}
    assert net.params["ip2"][0].diff.any()
    assert not net.params["ip1"][0].diff.any()
    assert set(net.backward(start="relu1", end="ip1")) == {"x"}
    assert net.params["ip1"][0].diff.any()


def test_diffs_that_do_not_fit_the_outputs_are_refused(net: Net) -> None:
    with pytest.raises(UsageError, match=r"not the net's outputs\. Expected loss, received lss"):
        net.backward(lss=1)
    with pytest.raises(ShapeError, match=r"blob 'loss' does not fit\. Expected \(\), received \(2,\)"):
        net.backward(loss=[1, 2])


# -- sharing weights


def test_nets_that_share_weights_have_one_memory_for_them(net: Net) -> None:
    text = MLP + layer("acc", "Accuracy", "ip2 label", "acc")
    test = build(text, seed=2, phase=TEST)
    test.share_with(net)
    net.params["ip1"][0].data[...] = 3
    assert (test.params["ip1"][0].data == 3).all()
    assert test.parameters.data is net.parameters.data
    assert test.forward(x=X, label=LABEL)["loss"] == net.forward(x=X, label=LABEL)["loss"]


def test_sharing_frees_the_memory_of_the_own_weights(net: Net) -> None:
    before = allocated()
    test = build(MLP, seed=2)
    assert allocated() >= before + 4 * ROW * test.parameters.rows
    test.share_with(net)
    assert allocated() < before + 4 * ROW


def test_sharing_after_a_pass_records_it_anew(net: Net) -> None:
    test = build(MLP, seed=2)
    own = float(test.forward(x=X, label=LABEL)["loss"])
    test.share_trained_layers_with(net)
    shared = float(test.forward(x=X, label=LABEL)["loss"])
    assert shared == float(net.forward(x=X, label=LABEL)["loss"]) != own


def test_layers_that_only_one_net_has_keep_their_weights(net: Net) -> None:
    extra = layer("extra", "InnerProduct", "x", "y", "inner_product_param { num_output: 2 }")
    more = build(MLP + extra, seed=2)
    own = more.params["extra"][0].data.copy()
    more.share_with(net)
    np.testing.assert_array_equal(more.params["extra"][0].data, own)
    less = build(MLP, seed=3)
    less.share_with(more)
    np.testing.assert_array_equal(less.params["ip1"][0].data, net.params["ip1"][0].data)


def test_weights_of_other_shapes_are_not_shared_and_nothing_is(net: Net) -> None:
    other = build(MLP.replace("num_output: 3", "num_output: 4"), seed=2)
    own = other.params["ip1"][0].data.copy()
    message = (
        "layer 'ip2' cannot share its params: the shapes differ. Expected [(4, 5), (4,)], received [(3, 5), (3,)]."
    )
    with pytest.raises(ShapeError, match=re.escape(message)):
        other.share_with(net)
    np.testing.assert_array_equal(other.params["ip1"][0].data, own)


def test_a_net_goes_with_its_last_user_and_takes_its_memory_along() -> None:
    net = build(
        layer("d", "DummyData", "", "d", "dummy_data_param { shape { dim: 9 } data_filler { type: 'uniform' } }")
    )
    net.run_forward()
    gc.collect()
    before = host_device().memory_info().allocated
    del net
    assert host_device().memory_info().allocated < before


# -- LeNet


@pytest.fixture
def lenet() -> Net:
    """LeNet with the recipe's weights, four images in place of its database."""
    param = parse((REFERENCE / "training" / "lenet" / "train_test.prototxt").read_text())
    inputs = parse(input_layer(data=(4, 1, 28, 28), label=(4,))).layer[0]
    inputs.name = "mnist"
    param.layer[0].CopyFrom(inputs)
    net = Net.from_param(param)
    for name, blobs in net.params.items():
        for index, blob in enumerate(blobs):
            blob.data[...] = recipe.weight(name, index, blob.shape)
    return net


def test_lenets_blobs_are_the_originals(lenet: Net) -> None:
    with np.load(REFERENCE / "training" / "lenet" / "trajectory.npz") as file:
        expected = {name.removeprefix("first_blob_"): file[name] for name in file if name.startswith("first_blob_")}
    lenet.forward(data=expected["data"], label=expected["label"])
    assert set(expected) == set(lenet.blobs) - {"loss"}
    for name, values in expected.items():
        assert np.abs(lenet.blobs[name].data - values).max() <= 1e-5 + 1e-4 * np.abs(values).max(), name


def test_a_replayed_forward_adds_little_python(lenet: Net) -> None:
    class Nothing:
        def run(self) -> None:
            pass

    image, label = np.zeros((1, 1, 28, 28), np.float32), np.zeros(1)
    lenet.forward(data=image, label=label)
    lenet._programs[True, 0, len(lenet.layers) - 1] = Nothing()  # type: ignore[assignment]
    lenet._checks.clear()
    fastest = min(timeit.repeat(lambda: lenet.forward(data=image, label=label), number=100, repeat=20)) / 100
    assert fastest < 50e-6  # about 5 microseconds on an idle machine


def test_weights_in_the_place_of_level_are_told_their_own(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"level must be a number\. Received 'w\.caffemodel'\. Weights are given as"):
        Net(tmp_path / "net.prototxt", TEST, "w.caffemodel")
