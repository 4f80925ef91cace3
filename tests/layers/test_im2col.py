"""Im2col against the original, a float64 definition, difference quotients and Convolution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError

from .harness import Array, assert_close, check_layer, check_reference, random, reference_names, run_layer


def im2col(options: str) -> str:
    return f'type: "Im2col" convolution_param {{ {options} }}'


def define(kernel, stride, pad, dilation=None, axis=1):
    """Return the definition for `check_layer`: a copy of one element for each place and tap."""
    dilation = dilation or (1,) * len(kernel)

    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        x = bottoms[0]
        items, spatial = x.shape[:axis], x.shape[axis + 1 :]
        x = x.reshape(-1, *x.shape[axis:])
        sizes = zip(spatial, kernel, stride, pad, dilation, strict=True)
        out = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes]
        top = np.zeros((*x.shape[:2], *kernel, *out))
        for tap in itertools.product(*map(range, kernel)):
            for place in itertools.product(*map(range, out)):
                numbers = zip(place, stride, tap, dilation, pad, strict=True)
                at = tuple(p * s + k * d - edge for p, s, k, d, edge in numbers)
                if all(0 <= i < size for i, size in zip(at, spatial, strict=True)):
                    top[(..., *tap, *place)] = x[(..., *at)]
        return [top.reshape(*items, -1, *out)]

    return definition


@pytest.mark.parametrize("name", reference_names("Im2col"))
def test_agrees_with_the_original(name):
    check_reference(name)


@pytest.mark.parametrize(
    ("options", "shape", "definition"),
    [
        ("kernel_size: 3", (2, 3, 7, 6), define((3, 3), (1, 1), (0, 0))),
        ("kernel_size: 1", (2, 3, 4, 5), define((1, 1), (1, 1), (0, 0))),
        ("kernel_size: 3 stride: 2 pad: 1", (2, 3, 8, 7), define((3, 3), (2, 2), (1, 1))),
        ("kernel_size: 2 stride: 3", (2, 3, 9, 8), define((2, 2), (3, 3), (0, 0))),
        ("kernel_size: 3 pad: 5", (2, 2, 4, 3), define((3, 3), (1, 1), (5, 5))),
        ("kernel_size: 3 pad: 2 stride: 3 dilation: 2", (2, 3, 9, 8), define((3, 3), (3, 3), (2, 2), (2, 2))),
        ("kernel_size: 3 pad: 4 stride: 2 dilation: 3", (1, 1, 5, 19), define((3, 3), (2, 2), (4, 4), (3, 3))),
        (
            "kernel_h: 2 kernel_w: 4 pad_h: 3 pad_w: 1 stride_h: 2 stride_w: 1",
            (2, 3, 6, 9),
            define((2, 4), (2, 1), (3, 1)),
        ),
        (
            "kernel_size: 2 kernel_size: 3 pad: 0 pad: 2 stride: 3 stride: 1 dilation: 1 dilation: 2",
            (2, 2, 8, 5),
            define((2, 3), (3, 1), (0, 2), (1, 2)),
        ),
        ("kernel_size: 4 stride: 3 pad: 2", (2, 5, 13), define((4,), (3,), (2,))),
        (
            "kernel_size: 2 kernel_size: 3 kernel_size: 2 stride: 2 stride: 1 stride: 2 pad: 1 dilation: 2",
            (2, 2, 3, 4, 5),
            define((2, 3, 2), (2, 1, 2), (1, 1, 1), (2, 2, 2)),
        ),
        ("kernel_size: 2 stride: 2 pad: 1", (1, 2, 3, 4, 3, 5), define((2,) * 4, (2,) * 4, (1,) * 4)),
        ("kernel_size: 2 axis: 2", (3, 2, 2, 4, 5), define((2, 2), (1, 1), (0, 0), axis=2)),
        ("kernel_size: 2 axis: -2 pad: 1", (3, 2, 4, 5), define((2,), (1,), (1,), axis=2)),
        ("kernel_size: 1 stride: 7", (1, 1, 1, 3), define((1, 1), (7, 7), (0, 0))),
        ("kernel_size: 1", (1, 1, 1, 1), define((1, 1), (1, 1), (0, 0))),
    ],
)
def test_forward_agrees_with_the_definition_and_backward_with_difference_quotients(options, shape, definition):
    check_layer(im2col(options), [random(1, *shape)], definition)


def test_patches_by_hand():
    run = run_layer(im2col("kernel_h: 1 kernel_w: 2 pad_w: 1 pad_h: 0 stride: 1"), [np.array([[[[1, 2, 3]]]])])
    #   0 1 2 3     what the left tap sees: the padding first
    #   1 2 3 0     and the right one: the padding last
    assert run.tops[0].tolist() == [[[[0, 1, 2, 3]], [[1, 2, 3, 0]]]]
    diff = np.array([[[[10, 20, 30, 40]], [[1, 2, 3, 4]]]], np.float32)
    assert run.backward([diff])[0][0].tolist() == [[[[21, 32, 43]]]]


def test_a_convolution_is_the_product_of_its_weights_with_the_patches():
    x = random(2, 2, 3, 8, 7)
    options = "kernel_size: 3 stride: 2 pad: 1 dilation: 2"
    columns = run_layer(im2col(options), [x]).tops[0]
    text = f'type: "Convolution" convolution_param {{ num_output: 4 {options} weight_filler {{ type: "xavier" }} }}'
    convolution = run_layer(text, [x])
    weights = convolution.params[0].reshape(4, -1)
    product = np.einsum("ok,nkhw->nohw", weights.astype(np.float64), columns)
    assert_close(convolution.tops[0], product, "convolution")


def test_places_that_no_tap_sees_get_no_gradient_and_not_a_number_comes_through():
    x = random(3, 1, 1, 1, 7)
    x[..., 3] = np.nan
    run = run_layer(im2col("kernel_h: 1 kernel_w: 1 stride: 3"), [x])
    assert np.isnan(run.tops[0]).tolist() == [[[[False, True, False]]]]
    diff = np.array([[[[1, np.nan, np.inf]]]], np.float32)
    assert_close(run.backward([diff])[0][0], [[[[1, 0, 0, np.nan, 0, 0, np.inf]]]], "diff", "exact")


@pytest.mark.parametrize("option", ["force_nd_im2col: true", "engine: CAFFE", "group: 7", "num_output: 3"])
def test_other_fields_change_nothing(option):
    x, options = random(4, 2, 3, 5, 4), "kernel_size: 3 pad: 1"
    plain, other = run_layer(im2col(options), [x]), run_layer(im2col(f"{options} {option}"), [x])
    assert_close(other.tops[0], plain.tops[0], option, "exact")


def test_channels_and_image_size_may_change():
    run = run_layer(im2col("kernel_size: 3 pad: 1"), [random(5, 2, 2, 5, 4)])
    x = random(6, 1, 3, 7, 9)
    expected = define((3, 3), (1, 1), (1, 1))([x], [])[0]
    assert_close(run.reshape(x)[0], expected, "after a reshape")
    assert run.backward()[0][0].shape == x.shape


def test_a_gradient_that_is_not_wanted_is_left_alone():
    run = run_layer(im2col("kernel_size: 3"), [random(7, 2, 2, 5, 4)])
    assert run.backward(propagate_down=[False])[0] == [None]
    assert np.isnan(run.bottom[0].diff).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "kernel_size must be given once, or once per spatial axis. Expected 1 or 2 values, received 0"),
        ("kernel_size: 0", "kernel_size must be positive. Received 0, 0"),
        ("kernel_size: 3 stride: 0", "stride must be positive. Received 0, 0"),
        ("kernel_size: 3 dilation: 0", "dilation must be positive. Received 0, 0"),
        (
            "kernel_size: 3 axis: 3",
            r"there must be a spatial axis .* 'bottom_0' \(2, 6, 5, 5\) with channels at axis 3",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(NetError, match=message):
        run_layer(im2col(options), [random(8, 2, 6, 5, 5)])


def test_a_kernel_larger_than_its_padded_input_is_an_error():
    with pytest.raises(ShapeError, match=r"the kernel is larger than its padded input along spatial axis 1: kernel 4"):
        run_layer(im2col("kernel_size: 4"), [random(9, 2, 6, 5, 3)])


def test_another_number_of_axes_is_an_error():
    run = run_layer(im2col("kernel_size: 3"), [random(10, 2, 3, 5, 5)])
    with pytest.raises(
        ShapeError, match=r"axes may not change. Expected 2 spatial axes behind axis 1, received bottom 'bottom_0' \("
    ):
        run.reshape(random(10, 2, 3, 5))
