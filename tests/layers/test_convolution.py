"""Convolution and Deconvolution against the original, a float64 definition and difference quotients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError

from .harness import Array, assert_close, check_layer, check_reference, random, reference_names, run_layer

FILLERS = 'weight_filler { type: "gaussian" std: 0.5 } bias_filler { type: "uniform" min: -1 max: 1 }'


def convolution(options: str, extra: str = "") -> str:
    return f'type: "Convolution" {extra} convolution_param {{ {options} {FILLERS} }}'


def deconvolution(options: str) -> str:
    return f'type: "Deconvolution" convolution_param {{ {options} {FILLERS} }}'


def define(stride, pad, dilation=None, group=1, axis=1):
    """Return the definition of a convolution for `check_layer`: a product of filter and patch at each place."""
    dilation = dilation or (1,) * len(stride)

    def one(x: Array, weights: Array, bias: Array) -> Array:
        items = x.shape[:axis]
        x = x.reshape(-1, *x.shape[axis:])
        outputs, seen, *kernel = weights.shape
        padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pad)])
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        out = [(size - span) // s + 1 for size, span, s in zip(padded.shape[2:], spans, stride, strict=True)]
        top = np.zeros((x.shape[0], outputs, *out))
        for place in itertools.product(*map(range, out)):
            corner = zip(place, stride, spans, dilation, strict=True)
            patch = tuple(slice(at * s, at * s + span, d) for at, s, span, d in corner)
            for o in range(outputs):
                first = o // (outputs // group) * seen
                products = padded[(slice(None), slice(first, first + seen), *patch)] * weights[o]
                top[(slice(None), o, *place)] = products.reshape(len(x), -1).sum(axis=1) + bias[o]
        return top.reshape(*items, *top.shape[1:])

    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        bias = params[1] if len(params) > 1 else np.zeros(len(params[0]))
        return [one(x, params[0], bias) for x in bottoms]

    return definition


def define_deconvolution(stride, pad, dilation=None, group=1, axis=1):
    """Return the definition of a deconvolution: each element of the bottom lays its multiple of the filters down."""
    dilation = dilation or (1,) * len(stride)

    def one(x: Array, weights: Array, bias: Array) -> Array:
        items, spatial = x.shape[:axis], x.shape[axis + 1 :]
        x = x.reshape(-1, *x.shape[axis:])
        channels, outputs, *kernel = weights.shape
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        whole = [s * (size - 1) + span for s, size, span in zip(stride, spatial, spans, strict=True)]
        top = np.zeros((x.shape[0], outputs * group, *whole))
        for place in itertools.product(*map(range, spatial)):
            corner = zip(place, stride, spans, dilation, strict=True)
            patch = tuple(slice(at * s, at * s + span, d) for at, s, span, d in corner)
            for c in range(channels):
                first = c // (channels // group) * outputs
                value = x[(slice(None), c, *place)].reshape(-1, *[1] * (1 + len(kernel)))
                top[(slice(None), slice(first, first + outputs), *patch)] += value * weights[c]
        inside = tuple(slice(p, size - p) for p, size in zip(pad, whole, strict=True))
        top = top[(..., *inside)] + bias.reshape(-1, *[1] * len(kernel))
        return top.reshape(*items, *top.shape[1:])

    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        bias = params[1] if len(params) > 1 else np.zeros(params[0].shape[1] * group)
        return [one(x, params[0], bias) for x in bottoms]

    return definition


@pytest.mark.parametrize("name", reference_names("Convolution", "Deconvolution"))
def test_agrees_with_the_original(name):
    check_reference(name)


@pytest.mark.parametrize(
    ("options", "shape", "definition"),
    [
        ("num_output: 3 kernel_size: 3", (2, 4, 7, 6), define((1, 1), (0, 0))),
        ("num_output: 20 kernel_size: 5", (2, 1, 9, 9), define((1, 1), (0, 0))),
        ("num_output: 5 kernel_size: 1", (3, 7, 3, 5), define((1, 1), (0, 0))),
        ("num_output: 5 kernel_size: 1 stride: 2 pad: 1", (3, 7, 3, 6), define((2, 2), (1, 1))),
        ("num_output: 4 kernel_size: 3 pad: 2 stride: 3 dilation: 2", (2, 3, 9, 8), define((3, 3), (2, 2), (2, 2))),
        (
            "num_output: 3 kernel_h: 2 kernel_w: 4 pad_h: 3 pad_w: 1 stride_h: 2 stride_w: 1",
            (2, 3, 6, 9),
            define((2, 1), (3, 1)),
        ),
        (
            "num_output: 3 kernel_size: 2 kernel_size: 3 pad: 0 pad: 2 stride: 3 stride: 1 dilation: 1 dilation: 2",
            (2, 2, 8, 5),
            define((3, 1), (0, 2), (1, 2)),
        ),
        ("num_output: 6 kernel_size: 3 group: 2 pad: 1 stride: 2", (2, 4, 5, 7), define((2, 2), (1, 1), group=2)),
        ("num_output: 6 kernel_size: 2 group: 3", (2, 3, 5, 4), define((1, 1), (0, 0), group=3)),
        ("num_output: 4 kernel_size: 3 bias_term: false pad: 1", (2, 3, 5, 6), define((1, 1), (1, 1))),
        ("num_output: 3 kernel_size: 4 stride: 3 pad: 2", (2, 5, 13), define((3,), (2,))),
        (
            "num_output: 4 kernel_size: 2 stride: 2 stride: 1 stride: 1 pad: 1 group: 2",
            (2, 4, 3, 4, 5),
            define((2, 1, 1), (1, 1, 1), group=2),
        ),
        ("num_output: 2 kernel_size: 2 stride: 2", (1, 2, 3, 4, 3, 5), define((2,) * 4, (0,) * 4)),
        ("num_output: 3 kernel_size: 2 axis: 2", (2, 3, 2, 4, 5), define((1, 1), (0, 0), axis=2)),
        ("num_output: 3 kernel_size: 2 axis: -2 pad: 1", (3, 2, 4, 5), define((1,), (1,), axis=2)),
        ("num_output: 7 kernel_size: 3", (1, 1, 3, 3), define((1, 1), (0, 0))),
        ("num_output: 1 kernel_size: 1", (1, 1, 1, 1), define((1, 1), (0, 0))),
    ],
)
def test_forward_agrees_with_the_definition_and_backward_with_difference_quotients(options, shape, definition):
    check_layer(convolution(options), [random(21, *shape)], definition)


@pytest.mark.parametrize(
    ("options", "shape", "definition"),
    [
        ("num_output: 3 kernel_size: 3", (2, 4, 4, 3), define_deconvolution((1, 1), (0, 0))),
        ("num_output: 5 kernel_size: 1", (3, 7, 3, 5), define_deconvolution((1, 1), (0, 0))),
        ("num_output: 4 kernel_size: 4 stride: 2 pad: 1", (2, 3, 5, 4), define_deconvolution((2, 2), (1, 1))),
        ("num_output: 2 kernel_size: 2 stride: 3", (2, 3, 3, 4), define_deconvolution((3, 3), (0, 0))),
        (
            "num_output: 4 kernel_size: 3 pad: 2 stride: 3 dilation: 2",
            (2, 3, 4, 3),
            define_deconvolution((3, 3), (2, 2), (2, 2)),
        ),
        (
            "num_output: 3 kernel_h: 2 kernel_w: 4 pad_h: 0 pad_w: 1 stride_h: 2 stride_w: 1",
            (2, 3, 4, 5),
            define_deconvolution((2, 1), (0, 1)),
        ),
        (
            "num_output: 6 kernel_size: 3 group: 2 pad: 1 stride: 2",
            (2, 4, 5, 3),
            define_deconvolution((2, 2), (1, 1), group=2),
        ),
        ("num_output: 3 kernel_size: 2 group: 3", (2, 6, 3, 4), define_deconvolution((1, 1), (0, 0), group=3)),
        (
            "num_output: 2 kernel_size: 3 bias_term: false pad: 1",
            (2, 3, 5, 4),
            define_deconvolution((1, 1), (1, 1)),
        ),
        ("num_output: 3 kernel_size: 4 stride: 3 pad: 2", (2, 5, 6), define_deconvolution((3,), (2,))),
        (
            "num_output: 4 kernel_size: 2 stride: 2 stride: 1 stride: 1 dilation: 1 dilation: 2 dilation: 1 group: 2",
            (2, 4, 2, 3, 4),
            define_deconvolution((2, 1, 1), (0, 0, 0), (1, 2, 1), group=2),
        ),
        ("num_output: 3 kernel_size: 2 axis: 2", (3, 2, 2, 4, 5), define_deconvolution((1, 1), (0, 0), axis=2)),
        ("num_output: 2 kernel_size: 3 axis: -2 pad: 1", (3, 2, 4, 5), define_deconvolution((1,), (1,), axis=2)),
        ("num_output: 7 kernel_size: 3", (1, 1, 1, 1), define_deconvolution((1, 1), (0, 0))),
    ],
)
def test_deconvolution_agrees_with_its_definition_and_with_difference_quotients(options, shape, definition):
    check_layer(deconvolution(options), [random(21, *shape)], definition)


def test_deconvolution_by_hand():
    weights = np.array([[[[1, 10]]]], np.float32)
    run = run_layer(
        deconvolution("num_output: 1 kernel_h: 1 kernel_w: 2"),
        [np.array([[[[1, 2, 3]]]])],
        params=[weights, np.array([100])],
    )
    # 1 2 3 times 1, and one place further on times 10
    assert run.tops[0].tolist() == [[[[101, 112, 123, 130]]]]
    bottom_diffs, param_diffs = run.backward([np.array([[[[1, 2, 3, 4]]]], np.float32)])
    assert bottom_diffs[0].tolist() == [[[[21, 32, 43]]]]
    assert param_diffs[0].tolist() == [[[[14, 20]]]]
    assert param_diffs[1].tolist() == [10]


@pytest.mark.parametrize("group", [1, 2])
def test_deconvolution_is_the_transpose_of_a_convolution_with_the_same_weights(group):
    x, y = random(37, 2, 4, 9, 7), random(38, 2, 6, 5, 4)
    options = f"kernel_size: 3 stride: 2 pad: 1 group: {group} bias_term: false"
    forth = run_layer(convolution(f"num_output: 6 {options}"), [x])
    back = run_layer(deconvolution(f"num_output: 4 {options}"), [y], params=forth.params)
    assert back.tops[0].shape == x.shape
    product = np.vdot(back.tops[0].astype(np.float64), x)
    assert_close(product, np.vdot(forth.tops[0].astype(np.float64), y), "<deconvolution(y), x>")


@pytest.mark.parametrize(
    ("layer", "definition"),
    [(convolution, define((2, 2), (1, 1))), (deconvolution, define_deconvolution((2, 2), (1, 1)))],
)
def test_several_bottoms_share_the_weights_and_add_to_their_gradient(layer, definition):
    bottoms = [random(seed, 2, 3, 5, 4) for seed in (22, 23, 24)]
    text = layer("num_output: 4 kernel_size: 3 pad: 1 stride: 2")
    run = check_layer(text, bottoms, definition)
    diffs = run.default_top_diffs()
    together = run.backward(diffs)[1]
    apart = [
        run_layer(text, [x], params=run.params).backward([diff])[1] for x, diff in zip(bottoms, diffs, strict=True)
    ]
    for i, diff in enumerate(together):
        assert_close(diff, sum(each[i].astype(np.float64) for each in apart), f"diff of param {i}")


def test_without_spatial_axes_it_is_an_inner_product():
    x = random(25, 4, 6)
    check_layer(convolution("num_output: 3"), [x], lambda bottoms, params: [bottoms[0] @ params[0].T + params[1]])
    check_layer(deconvolution("num_output: 3"), [x], lambda bottoms, params: [bottoms[0] @ params[0] + params[1]])


@pytest.mark.parametrize("option", ["force_nd_im2col: true", "engine: CAFFE", "engine: CUDNN"])
def test_choices_between_implementations_change_nothing(option):
    x, options = random(26, 2, 3, 5, 4), "num_output: 4 kernel_size: 3 pad: 1"
    plain = run_layer(convolution(options), [x])
    other = run_layer(convolution(f"{options} {option}"), [x], params=plain.params)
    assert_close(other.tops[0], plain.tops[0], option, "exact")


def test_another_image_size_keeps_the_weights():
    run = run_layer(convolution("num_output: 3 kernel_size: 3 pad: 1"), [random(27, 2, 2, 5, 4)])
    params = [param.astype(np.float64) for param in run.params]
    x = random(28, 3, 2, 7, 9)
    assert_close(run.reshape(x)[0], define((1, 1), (1, 1))([x.astype(np.float64)], params)[0], "after a reshape")


@pytest.mark.parametrize("layer", [convolution, deconvolution])
def test_gradients_that_are_not_wanted_are_left_alone(layer):
    run = run_layer(layer("num_output: 3 kernel_size: 3"), [random(29, 2, 2, 5, 4), random(30, 2, 2, 5, 4)])
    run.layer.param_propagate_down[:] = [False, True]
    bottom_diffs, param_diffs = run.backward(propagate_down=[True, False])
    assert np.isfinite(bottom_diffs[0]).all() and np.isnan(run.bottom[1].diff).all()
    assert not param_diffs[0].any() and param_diffs[1].all()
    run.layer.param_propagate_down[:] = [True, False]
    param_diffs = run.backward()[1]
    assert param_diffs[0].all() and not param_diffs[1].any()


def test_params_from_the_prototxt_are_kept():
    blobs = "blobs { shape { dim: 1 dim: 1 dim: 1 dim: 2 } data: 3 data: 5 } blobs { shape { dim: 1 } data: 7 }"
    run = run_layer(convolution("num_output: 1 kernel_h: 1 kernel_w: 2", blobs), [np.array([[[[1, 10]]]], np.float32)])
    assert run.tops[0].tolist() == [[[[60]]]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("kernel_size: 3", "num_output must be positive. Received 0"),
        (
            "num_output: 4",
            "kernel_size must be given once, or once per spatial axis. Expected 1 or 2 values, received 0",
        ),
        (
            "num_output: 4 kernel_size: 3 pad: 1 pad: 1 pad: 1",
            "pad must be given once.* Expected 1 or 2 values, received 3",
        ),
        ("num_output: 4 kernel_h: 3", "kernel_size must be positive. Received 3, 0"),
        ("num_output: 4 kernel_size: 3 kernel_w: 3", "kernel_size and kernel_h, kernel_w exclude each other"),
        ("num_output: 4 kernel_size: 3 stride_h: 2", "stride must be positive. Received 2, 0"),
        ("num_output: 4 kernel_size: 3 stride: 2 stride_h: 2", "stride and stride_h, stride_w exclude each other"),
        ("num_output: 4 kernel_size: 3 pad: 2 pad_h: 2", "pad and pad_h, pad_w exclude each other. Received both"),
        ("num_output: 4 kernel_size: 3 dilation: 0", "dilation must be positive. Received 0, 0"),
        ("num_output: 4 kernel_size: 3 group: 0", "group must be positive. Received 0"),
        (
            "num_output: 4 kernel_size: 3 group: 4",
            "group must divide the channels of the bottom. Received group 4, .* 6 .bottom 'bottom_0' ",
        ),
        ("num_output: 4 kernel_size: 3 group: 3", "group must divide the num_output. Received group 3, num_output 4"),
    ],
)
@pytest.mark.parametrize("layer", [convolution, deconvolution])
def test_options_that_do_not_fit_are_named(layer, options, message):
    with pytest.raises(NetError, match=message):
        run_layer(layer(options), [random(31, 2, 6, 5, 5)])


def test_padding_that_leaves_nothing_of_a_deconvolution_is_an_error_with_the_figures():
    figures = "axis 1: 2 places with stride 2 and a kernel that spans 3 reach over 5 positions, of which pad 3 cuts 6"
    with pytest.raises(ShapeError, match=f"the padding leaves nothing of the top along spatial {figures}"):
        run_layer(deconvolution("num_output: 2 kernel_size: 3 stride: 2 pad: 3"), [random(39, 1, 2, 5, 2)])


def test_kernel_h_is_for_two_spatial_axes_only():
    with pytest.raises(NetError, match=r"kernel_h and kernel_w are for two spatial axes. Received a bottom with 1"):
        run_layer(convolution("num_output: 2 kernel_h: 3 kernel_w: 1"), [random(32, 2, 6, 5)])


@pytest.mark.parametrize(
    ("options", "figures"),
    [
        ("kernel_size: 6", "axis 1: kernel 6 with dilation 1 spans 6, input 5 with pad 0 has 5"),
        ("kernel_size: 3 dilation: 4 pad: 1", "axis 0: kernel 3 with dilation 4 spans 9, input 6 with pad 1 has 8"),
        ("kernel_h: 2 kernel_w: 6 stride: 2", "axis 1: kernel 6 with dilation 1 spans 6, input 5 with pad 0 has 5"),
    ],
)
def test_a_kernel_larger_than_its_padded_input_is_an_error_with_the_figures(options, figures):
    with pytest.raises(ShapeError, match=f"the kernel is larger than its padded input along spatial {figures}"):
        run_layer(convolution(f"num_output: 2 {options}"), [random(33, 1, 2, 6, 5)])


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (2, 3, 5), (2, 3, 5, 5, 5)])
def test_a_bottom_that_no_longer_fits_the_weights_is_an_error(shape):
    run = run_layer(convolution("num_output: 2 kernel_size: 3"), [random(34, 2, 3, 5, 5)])
    expected = r"Expected 3 channels at axis 1 and 2 spatial axes, received 'bottom_0' .* \(weights \(2, 3, 3, 3\)\)"
    with pytest.raises(ShapeError, match=expected):
        run.reshape(random(34, *shape))


def test_bottoms_of_different_shapes_are_an_error():
    message = r"bottom 1 must have the shape of bottom 0, 'bottom_0' \(2, 3, 5, 5\). Received 'bottom_1' \(1, 3"
    with pytest.raises(ShapeError, match=message):
        run_layer(convolution("num_output: 2 kernel_size: 3"), [random(35, 2, 3, 5, 5), random(35, 1, 3, 5, 5)])


def test_params_from_the_prototxt_that_do_not_fit_are_an_error():
    blobs = "blobs { shape { dim: 1 dim: 2 } data: 3 data: 5 }"
    message = r"bottom 'bottom_0' .* and the options. Expected shapes \[\(1, 1, 3, 3\), \(1,\)\], received \[\(1, 2\)\]"
    with pytest.raises(ShapeError, match=message):
        run_layer(convolution("num_output: 1 kernel_size: 3", blobs), [random(36, 1, 1, 3, 3)])
