"""BatchNorm and MVN against the original, float64 definitions, difference quotients and a solver."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from google.protobuf import text_format

import caffe_lite as caffe
from caffe_lite.errors import ShapeError
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2

from .harness import TEST, TRAIN, Array, assert_close, check_layer, check_reference, random, reference_names, run_layer

STORED = [random(1, 5), np.abs(random(2, 5)) + 0.5, np.array([2.5], np.float32)]


def batch_norm(options: str = "") -> str:
    return f'name: "bn" type: "BatchNorm" batch_norm_param {{ {options} }}'


def mvn(options: str = "") -> str:
    return f'type: "MVN" mvn_param {{ {options} }}'


def per_channel(values: Array, axes: int) -> Array:
    return values.reshape(1, -1, *[1] * (axes - 2))


def define_batch(eps: float = 1e-5):
    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        x = bottoms[0]
        rows = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
        mean = np.array([row.sum() / row.size for row in rows])
        variance = np.array([((row - m) ** 2).sum() / row.size for row, m in zip(rows, mean, strict=True)])
        return [(x - per_channel(mean, x.ndim)) / np.sqrt(per_channel(variance, x.ndim) + eps)]

    return definition


def define_stored(eps: float = 1e-5):
    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        axes, factor = bottoms[0].ndim, 0.0 if params[2][0] == 0 else 1 / params[2][0]
        mean, variance = (per_channel(param * factor, axes) for param in params[:2])
        return [(bottoms[0] - mean) / np.sqrt(variance + eps)]

    return definition


def define_mvn(scaled: bool = True, across: bool = False, eps: float = 1e-9):
    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        x = bottoms[0].reshape(*bottoms[0].shape, *[1] * (4 - bottoms[0].ndim))
        top = np.empty_like(x)
        for n in range(x.shape[0]):
            for part in [slice(None)] if across else range(x.shape[1]):
                values = x[n, part]
                top[n, part] = values - values.sum() / values.size
                if scaled:
                    top[n, part] /= np.sqrt((top[n, part] ** 2).sum() / values.size) + eps
        return [top]

    return definition


def gradient(x: Array, dy: Array, axes: tuple[int, ...], eps: float) -> Array:
    """Return the gradient of (x - mean) / sqrt(variance + eps), in float64, by the chain rule step by step."""
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    count = np.prod([x.shape[axis] for axis in axes])
    d = x - x.mean(axes, keepdims=True)
    variance = (d**2).mean(axes, keepdims=True)
    to_d = dy / np.sqrt(variance + eps)
    to_variance = (dy * d).sum(axes, keepdims=True) * -0.5 * (variance + eps) ** -1.5
    to_d += to_variance * 2 * d / count
    return to_d - to_d.mean(axes, keepdims=True)


@pytest.mark.parametrize("name", reference_names("BatchNorm", "MVN"))
def test_agrees_with_the_original(name):
    check_reference(name)


SHAPES = {
    "images": (4, 3, 5, 7),
    "batch of one": (1, 5, 3, 6),
    "one channel": (3, 1, 4, 4),
    "one column": (3, 2, 9, 1),
    "one pixel": (6, 5, 1, 1),
    "two axes": (8, 5),
    "more channels than a tile": (3, 300),
    "three axes": (3, 2, 37),
    "five axes": (2, 3, 2, 3, 5),
}


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_batch_statistics_agree_with_the_definition(shape, eps):
    check_layer(batch_norm(f"eps: {eps}"), [random(3, *shape, scale=2.0) + 1], define_batch(eps))


@pytest.mark.parametrize(("options", "phase"), [("", TEST), ("use_global_stats: true", TRAIN)])
@pytest.mark.parametrize("shape", [(4, 5, 3, 7), (1, 5, 2, 2), (8, 5), (1, 5), (2, 5, 1, 1), (2, 5, 2, 3, 2)])
def test_stored_statistics_agree_with_the_definition(shape, options, phase):
    run = check_layer(batch_norm(f"eps: 0.01 {options}"), [random(4, *shape)], define_stored(0.01), phase, STORED)
    for param, before in zip(run.params, STORED, strict=True):
        assert_close(param, before, "a param, which stays", "exact")


def test_use_global_stats_false_takes_the_batch_in_phase_test_too():
    run = check_layer(batch_norm("use_global_stats: false"), [random(5, 4, 5, 3, 3)], define_batch(), TEST, STORED)
    assert run.params[2] > STORED[2]


def test_stored_statistics_of_weight_zero_are_mean_and_variance_zero():
    x = random(6, 2, 5, 3, 3)
    run = run_layer(batch_norm("eps: 0.25"), [x], TEST, [STORED[0], STORED[1], np.zeros(1, np.float32)])
    assert_close(run.tops[0], 2 * x.astype(np.float64), "top")


@pytest.mark.parametrize("fraction", [0.999, 0.5])
@pytest.mark.parametrize("shape", [(3, 5, 2, 4), (4, 5), (1, 5), (1, 5, 1, 2)])
def test_each_batch_adds_its_mean_and_unbiased_variance_to_the_stored_sums(shape, fraction):
    run = run_layer(batch_norm(f"moving_average_fraction: {fraction}"), [random(7, *shape)], params=STORED)
    run.set_params(STORED)
    mean, variance, weight = (param.astype(np.float64) for param in STORED)
    for seed in range(3):
        run._values = [random(seed, *shape) * (seed + 1)]
        run.forward_once()
        rows = np.moveaxis(run._values[0].astype(np.float64), 1, 0).reshape(5, -1)
        mean = fraction * mean + rows.mean(1)
        variance = fraction * variance + (rows.var(1, ddof=1) if rows.shape[1] > 1 else 0)
        weight = fraction * weight + 1
    for actual, expected in zip(run.params, (mean, variance, weight), strict=True):
        assert_close(actual, expected, "stored sums")


def test_a_batch_by_hand():
    # channel 0: 1 3 | 5 7  mean 4, variance 5, with eps 4 the deviation is 3; channel 1: all 2, so zeros
    x = np.array([[[1, 3], [2, 2]], [[5, 7], [2, 2]]], np.float32)
    run = run_layer(batch_norm("eps: 4 moving_average_fraction: 0"), [x])
    assert_close(run.tops[0], [[[-1, -1 / 3], [0, 0]], [[1 / 3, 1], [0, 0]]], "top")
    assert run.params[0].tolist() == [4, 2]
    assert_close(run.params[1], [5 * 4 / 3, 0], "stored variance")
    assert run.params[2].tolist() == [1]


@pytest.mark.parametrize("mean", [300.0, -1e4, 1e6])
@pytest.mark.parametrize("shape", [(3, 2, 61, 67), (400, 7), (1, 2, 3, 30001)])
def test_values_far_from_zero_lose_no_accuracy(shape, mean):
    x = random(8, *shape) + np.float32(mean)
    x64, dy = x.astype(np.float64), random(9, *shape)
    run = run_layer(batch_norm("moving_average_fraction: 0"), [x])
    assert_close(run.tops[0], define_batch()([x64], [])[0], "top")
    axes = (0, *range(2, x.ndim))
    assert_close(run.backward([dy])[0][0], gradient(x, dy, axes, 1e-5), "diff of the bottom")
    assert_close(run.params[1] / x64.var(axes, ddof=1), np.ones(shape[1]), "stored variance")
    run = run_layer(mvn("across_channels: true"), [x])
    assert_close(run.tops[0].reshape(shape), define_mvn(across=True)([x64], [])[0].reshape(shape), "top of MVN")
    expected = gradient(x, dy, tuple(range(1, x.ndim)), 0.0)
    assert_close(run.backward([dy.reshape(run.tops[0].shape)])[0][0], expected, "diff of the bottom of MVN")


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("text", "phase"), [(batch_norm(), TRAIN), (batch_norm(), TEST), (mvn(), TRAIN)], ids=["batch", "stored", "mvn"]
)
def test_backward_does_not_read_the_top_which_later_layers_may_overwrite(text, phase, in_place):
    x, dy = random(10, 2, 5, 3, 3), random(11, 2, 5, 3, 3)
    params = None if "MVN" in text else STORED
    expected = run_layer(text, [x], phase, params).backward([dy])[0][0]
    run = run_layer(text, [x], phase, params, in_place=in_place)
    run.top[0].data[...] = np.nan
    run.top[0].diff[...] = dy
    run.layer.backward(run.top, [True], run.bottom)
    assert_close(run.bottom[0].diff, expected, "diff of the bottom", "exact")


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3)])
def test_a_nan_spoils_its_own_channel_only(shape):
    x = random(12, *shape)
    x.reshape(-1)[x[0, 0].size] = np.nan  # the first of channel 1
    top = run_layer(batch_norm(), [x]).tops[0]
    assert np.isnan(top).any(axis=(0, *range(2, x.ndim))).tolist() == [False, True, False]
    assert np.isnan(top[:, 1]).all()


def test_a_batch_without_items_leaves_the_stored_sums_alone():
    run = run_layer(batch_norm(), [np.zeros((0, 5, 2, 2), np.float32)], params=STORED)
    assert run.tops[0].shape == (0, 5, 2, 2)
    for param, before in zip(run.params, STORED, strict=True):
        assert_close(param, before, "a param", "exact")
    run.backward()


@pytest.mark.parametrize("layer_text", [batch_norm(), mvn()])
def test_no_gradient_is_computed_for_a_bottom_that_wants_none(layer_text):
    run = run_layer(layer_text, [random(13, 2, 3, 2, 2)])
    run.backward(propagate_down=[False])
    assert np.isnan(run.bottom[0].diff).all()


# -- in a net

NET = """
layer { name: "in" type: "Input" top: "x" top: "y"
        input_param { shape { dim: 4 dim: 3 dim: 2 dim: 5 } shape { dim: 4 } } }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "x" batch_norm_param { moving_average_fraction: 0.5 } PARAMS }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "y" top: "loss" }
"""


def net_parameter(params: str = ""):
    return text_format.Parse(NET.replace("PARAMS", params), caffe_pb2.NetParameter())


def net(phase: int, params: str = "") -> Net:
    return Net.from_param(net_parameter(params), caffe_pb2.NetState(phase=phase))


def test_a_net_gathers_statistics_once_a_pass_and_saves_them(tmp_path):
    train, test = net(TRAIN), net(TEST)
    test.share_with(train)
    mean = np.zeros(3)
    for seed in range(4):
        x = random(seed, 4, 3, 2, 5) + seed
        train.forward(x=x, y=np.zeros(4))
        mean = 0.5 * mean + x.astype(np.float64).mean((0, 2, 3))
    assert_close(train.params["bn"][0].data, mean, "stored means")
    assert train.params["bn"][2].data.tolist() == [1.875]
    assert_close(test.params["bn"][0].data, mean, "stored means, shared")
    train.save(tmp_path / "net.caffemodel")
    loaded = net(TEST)
    loaded.copy_from(tmp_path / "net.caffemodel")
    for actual, expected in zip(loaded.params["bn"], train.params["bn"], strict=True):
        assert_close(actual.data, expected.data, "a param from a file", "exact")
    outputs = [each.forward(x=x, y=np.zeros(4))["loss"] for each in (test, loaded)]
    assert_close(outputs[0], outputs[1], "the loss with shared and with loaded statistics", "exact")
    assert train.params["bn"][2].data.tolist() == [1.875]


@pytest.mark.parametrize("params", ["", "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 3 }"])
def test_a_solver_leaves_the_statistics_alone(params, tmp_path):
    (tmp_path / "net.prototxt").write_text(NET.replace("PARAMS", params))
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 0.5 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.5 display: 0 '
        f'max_iter: 9 snapshot_prefix: "{tmp_path}/s"'
    )
    solver = caffe.SGDSolver(str(tmp_path / "solver.prototxt"))
    assert solver.net.parameters.lr_mults[:3] == [0, 0, 0]
    x = random(14, 4, 3, 2, 5)
    solver.net.blobs["y"].data[...] = [0, 1, 2, 1]
    before, weight = solver.net.params["ip"][0].data.copy(), 0.0
    for _ in range(3):
        solver.net.blobs["x"].data[...] = x
        solver.step(1)
        weight = 0.5 * weight + 1
    assert_close(solver.net.params["bn"][0].data, weight * x.astype(np.float64).mean((0, 2, 3)), "stored means")
    assert solver.net.params["bn"][2].data.tolist() == [weight]
    assert np.abs(solver.net.params["ip"][0].data - before).max() > 0.01


@pytest.mark.parametrize(
    "params", ["param { lr_mult: 2 }", "param { lr_mult: 0 } param { lr_mult: 2 }", "param {}" * 3]
)
def test_a_prototxt_that_trains_the_statistics_gets_a_warning_that_names_the_layer(params, tmp_path, caplog):
    (tmp_path / "net.prototxt").write_text(NET.replace("PARAMS", params))
    with caplog.at_level(logging.WARNING, "caffe_lite"):
        loaded = Net(tmp_path / "net.prototxt", TRAIN)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "Layer 'bn' (BatchNorm): its params are statistics and cannot be trained. Expected lr_mult 0" in warnings[0]
    assert loaded.parameters.lr_mults[:3] == [0, 0, 0]


@pytest.mark.parametrize("params", ["", "param { lr_mult: 0 }", "param { lr_mult: 0 }" * 3])
def test_a_prototxt_that_leaves_the_statistics_alone_gets_no_warning(params, tmp_path, caplog):
    (tmp_path / "net.prototxt").write_text(NET.replace("PARAMS", params))
    with caplog.at_level(logging.WARNING, "caffe_lite"):
        Net(tmp_path / "net.prototxt", TRAIN)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# -- MVN


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 2, 4, 3), (3, 1, 1, 9), (2, 2, 67, 1)])
def test_mvn_agrees_with_the_definition(shape, scaled, across):
    options = f"normalize_variance: {str(scaled).lower()} across_channels: {str(across).lower()}"
    check_layer(mvn(options), [random(15, *shape, scale=3.0) + 2], define_mvn(scaled, across))


@pytest.mark.parametrize("shape", [(4,), (3, 37), (2, 3, 6)])
def test_mvn_makes_four_axes_of_fewer(shape):
    run = check_layer(mvn("across_channels: true"), [random(16, *shape)], define_mvn(across=True), in_place=False,
                      gradient=len(shape) > 1)  # fmt: skip
    assert run.tops[0].shape == (*shape, *[1] * (4 - len(shape)))


def test_mvn_of_single_elements_is_zero():
    run = run_layer(mvn(), [random(17, 3, 4)])
    assert not run.tops[0].any()


def test_mvn_adds_eps_to_the_deviation_and_backward_takes_it_for_part_of_it():
    x, dy = random(18, 2, 3, 4, 5), random(19, 2, 3, 4, 5)
    run = check_layer(mvn("eps: 0.5"), [x], define_mvn(eps=0.5), gradient=False)
    y = define_mvn(eps=0.5)([x.astype(np.float64)], [])[0]
    deviation = x.astype(np.float64).std((2, 3), keepdims=True) + 0.5
    means = [values.mean((2, 3), keepdims=True) for values in (dy.astype(np.float64), dy * y)]
    assert_close(run.backward([dy])[0][0], (dy - means[0] - y * means[1]) / deviation, "diff of the bottom")


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 3, 0, 2)])
def test_mvn_of_nothing_is_nothing(shape):
    run = run_layer(mvn(), [np.zeros(shape, np.float32)])
    assert run.tops[0].shape == shape
    run.backward()


# -- errors


def test_batch_norm_of_a_bottom_without_channels_is_an_error():
    with pytest.raises(
        ShapeError, match=r"a bottom \(num, channels, ...\) of two axes or more, received 'bottom_0' \(6,\). Reshape"
    ):
        run_layer(batch_norm(), [random(20, 6)])


def test_another_number_of_channels_behind_batch_norm_is_an_error():
    run = run_layer(batch_norm(), [random(21, 2, 5, 3)])
    with pytest.raises(
        ShapeError, match=r"number of channels does not fit the params. Expected 5, received 4 \(bottom .*4, 3\)\)"
    ):
        run.reshape(random(21, 2, 4, 3))


def test_params_of_another_shape_are_an_error():
    with pytest.raises(
        ShapeError, match=r"do not fit bottom 'bottom_0' \(2, 5\). Expected shapes \[\(5,\), \(5,\), \(1,\)\], received"
    ):
        run_layer(f"{batch_norm()} blobs {{ shape {{ dim: 5 }} {'data: 1 ' * 5} }}", [random(22, 2, 5)])


def test_mvn_of_five_axes_is_an_error():
    with pytest.raises(ShapeError, match=r"at most 4 axes. Received 'bottom_0' \(2, 1, 2, 1, 2\)"):
        run_layer(mvn(), [random(23, 2, 1, 2, 1, 2)])
