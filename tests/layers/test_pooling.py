"""Pooling against the original, a float64 definition, difference quotients and a matrix drawn by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError

from .harness import (
    TEST,
    TRAIN,
    Array,
    assert_close,
    check_gradient,
    check_layer,
    check_reference,
    distinct,
    reference_names,
    run_layer,
)


def pooling(options: str, extra: str = "") -> str:
    return f'type: "Pooling" {extra} pooling_param {{ {options} }}'


def windows(shape, kernel, stride, pad, ceil):
    """Yield (ph, pw, rows, columns, divisor) of every window, from the sentences of the layer's docstring."""
    counts = []
    for size, k, s, p in zip(shape, kernel, stride, pad, strict=True):
        exact = (size + 2 * p - k) / s
        count = (math.ceil(exact) if ceil else math.floor(exact)) + 1
        if any(pad) and (count - 1) * s >= size + p:
            count -= 1
        counts.append(count)
    for place in itertools.product(*map(range, counts)):
        axes, divisor = [], 1
        for at, size, k, s, p in zip(place, shape, kernel, stride, pad, strict=True):
            begin = at * s - p
            axes.append([i for i in range(begin, begin + k) if 0 <= i < size])
            divisor *= len([i for i in range(begin, begin + k) if i < size + p])
        yield *place, *axes, divisor


def define(kind, kernel=None, stride=(1, 1), pad=(0, 0), ceil=True, mask=False):
    """Return the definition of a pooling layer for `check_layer`: loops over windows, nothing else."""

    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        x = bottoms[0]
        height, width = x.shape[2:]
        found = list(windows((height, width), kernel or (height, width), stride, pad, ceil))
        top = np.zeros((*x.shape[:2], found[-1][0] + 1, found[-1][1] + 1))
        where = np.zeros_like(top)
        for n, c in np.ndindex(*x.shape[:2]):
            for ph, pw, rows, columns, divisor in found:
                values = [(x[n, c, h, w], h * width + w) for h in rows for w in columns]
                if kind == "AVE":
                    top[n, c, ph, pw] = sum(value for value, _ in values) / divisor
                else:
                    top[n, c, ph, pw], where[n, c, ph, pw] = max(values)
        return [top, where] if mask else [top]

    return definition


# kernel, stride, pad, ceil, (height, width): no two alike, so that a mixed-up axis or a forgotten option shows
SETTINGS = {
    "2x2 tiles": ((2, 2), (2, 2), (0, 0), True, (6, 10)),
    "2x2 clipped": ((2, 2), (2, 2), (0, 0), True, (5, 8)),
    "2x2 floor leaves a row over": ((2, 2), (2, 2), (0, 0), False, (5, 7)),
    "3x3 overlapping, clipped": ((3, 3), (2, 2), (0, 0), True, (8, 7)),
    "3x3 padded, last window left out": ((3, 3), (2, 2), (1, 1), True, (6, 9)),
    "3x3 stride 1 padded": ((3, 3), (1, 1), (1, 1), True, (4, 5)),
    "3x3 stride 3 by 1": ((3, 3), (3, 1), (2, 1), False, (7, 19)),
    "larger than the plane": ((3, 3), (2, 2), (0, 0), True, (2, 2)),
    "4x4 stride 2 padded": ((4, 4), (2, 2), (1, 1), True, (7, 9)),
    "2x2 stride 1 padded": ((2, 2), (1, 1), (1, 1), True, (5, 6)),
    "rectangular": ((3, 2), (1, 3), (2, 1), True, (5, 11)),
    "gaps between windows": ((2, 1), (3, 2), (0, 0), False, (8, 7)),
    "wide kernel": ((5, 4), (2, 3), (3, 2), True, (9, 17)),
    "padding of the height leaves out an empty column": ((2, 1), (1, 4), (1, 0), True, (5, 6)),
    "one column": ((3, 1), (2, 1), (1, 0), True, (9, 1)),
    "one element": ((1, 1), (1, 1), (0, 0), True, (1, 1)),
}


@pytest.mark.parametrize("name", reference_names("Pooling"))
def test_agrees_with_the_original(name):
    check_reference(name)


@pytest.mark.parametrize("kind", ["MAX", "AVE"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_forward_agrees_with_the_definition_and_backward_with_difference_quotients(setting, kind):
    kernel, stride, pad, ceil, size = SETTINGS[setting]
    options = f"pool: {kind} kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]} "
    options += f"pad_h: {pad[0]} pad_w: {pad[1]} round_mode: {'CEIL' if ceil else 'FLOOR'}"
    check_layer(pooling(options), [distinct(3, 2, 3, *size)], define(kind, kernel, stride, pad, ceil))


@pytest.mark.parametrize("kind", ["MAX", "AVE"])
def test_global_pooling_takes_the_whole_plane(kind):
    run = check_layer(pooling(f"pool: {kind} global_pooling: true"), [distinct(4, 2, 3, 5, 7)], define(kind))
    other = distinct(5, 1, 2, 3, 3)
    assert_close(run.reshape(other)[0], define(kind)([other.astype(np.float64)], [])[0], "after another plane size")


def test_second_top_says_where_each_maximum_is_in_its_plane():
    text = pooling("pool: MAX kernel_size: 3 stride: 2 pad: 1", 'top: "top" top: "mask"')
    check_layer(text, [distinct(6, 2, 3, 6, 7)], define("MAX", (3, 3), (2, 2), (1, 1), mask=True), tops=[0])


def test_a_matrix_by_hand():
    # 2 x 2, stride 2: the bottom, the windows (clipped at the right and below), where the maxima were, and the way back
    #   1 9 | 2 3 | 0        MAX  9 8 7   mask  1  7  9    diff  10 20 30    0 10  0 0  0
    #   5 3 | 8 8 | 7             6 1 2        10 12 14          40 50 60    0  0 20 0 30
    #   ----+-----+--        AVE  4.5 5.25 3.5                              40  0 50 0 60
    #   6 4 | 1 0 | 2             5.0 0.50 2.0
    x = np.array([[[[1, 9, 2, 3, 0], [5, 3, 8, 8, 7], [6, 4, 1, 0, 2]]]], np.float32)
    diff = np.array([[[[10, 20, 30], [40, 50, 60]]]], np.float32)
    run = run_layer(pooling("kernel_size: 2 stride: 2", 'top: "top" top: "mask"'), [x])
    assert run.tops[0].tolist() == [[[[9, 8, 7], [6, 1, 2]]]]
    assert run.tops[1].tolist() == [[[[1, 7, 9], [10, 12, 14]]]]
    bottom_diff = run.backward([diff, np.ones_like(diff)])[0][0]
    assert bottom_diff.tolist() == [[[[0, 10, 0, 0, 0], [0, 0, 20, 0, 30], [40, 0, 50, 0, 60]]]]
    run = run_layer(pooling("pool: AVE kernel_size: 2 stride: 2"), [x])
    assert run.tops[0].tolist() == [[[[4.5, 5.25, 3.5], [5, 0.5, 2]]]]


# One setting for each of the kernels that find a maximum: kernel, stride, height x width, the windows' first elements.
MAXIMA = {
    "2x2": (2, 2, (2, 4), [0, 2]),
    "3x3": (3, 2, (3, 5), [0, 2]),
    "general": (4, 3, (4, 7), [0, 3]),
}


@pytest.mark.parametrize("setting", MAXIMA)
def test_max_pool_routes_the_gradient_to_the_first_of_equal_maxima(setting):
    kernel, stride, size, first = MAXIMA[setting]
    text = pooling(f"kernel_size: {kernel} stride: {stride}", 'top: "top" top: "mask"')
    run = run_layer(text, [np.full((1, 1, *size), -2, np.float32)])
    assert run.tops[1].ravel().tolist() == first
    diffs = run.backward([np.array([[[[3, 4]]]], np.float32), np.zeros((1, 1, 1, 2), np.float32)])[0][0].ravel()
    assert diffs[first].tolist() == [3, 4]
    assert np.count_nonzero(diffs) == 2


@pytest.mark.parametrize("setting", MAXIMA)
def test_max_pool_keeps_nan_visible(setting):
    kernel, stride, size, _ = MAXIMA[setting]
    x = distinct(7, 1, 1, *size)
    x[0, 0, 1, 0] = np.nan
    run = run_layer(pooling(f"kernel_size: {kernel} stride: {stride}", 'top: "top" top: "mask"'), [x])
    assert np.isnan(run.tops[0]).ravel().tolist() == [True, False]
    assert run.tops[1].ravel()[0] == size[1]


@pytest.mark.parametrize("setting", MAXIMA)
def test_max_pool_of_minus_infinities_is_minus_infinity(setting):
    kernel, stride, size, first = MAXIMA[setting]
    x = np.full((1, 1, *size), -np.inf, np.float32)
    run = run_layer(pooling(f"kernel_size: {kernel} stride: {stride}", 'top: "top" top: "mask"'), [x])
    assert run.tops[0].ravel().tolist() == [-np.inf, -np.inf]
    assert run.tops[1].ravel().tolist() == first


@pytest.mark.parametrize(("kernel", "stride", "width"), [(1, 3, 5), (3, 5, 9)])
def test_an_empty_last_window_has_no_maximum_and_no_gradient(kernel, stride, width):
    # rounded up, kernel 1 and stride 3 put windows at 0, 3 and 6; of 5 columns none is left for the last
    x = distinct(8, 1, 2, kernel, width)
    options = f"kernel_size: {kernel} stride: {stride}"
    run = run_layer(pooling(options, 'top: "top" top: "mask"'), [x])
    first, second = x[0, 0, :, :kernel].max(), x[0, 0, :, stride : stride + kernel].max()
    assert run.tops[0][0, 0, 0].tolist() == [first, second, -np.finfo(np.float32).max]
    assert run.tops[1][0, 0, 0, 2] == -1
    diff = np.full((1, 2, 1, 3), 9, np.float32)
    assert run.backward([diff, diff])[0][0].sum() == 4 * 9
    run = run_layer(pooling(f"pool: AVE {options}"), [x])
    means = [x[0, 0, :, at : at + kernel].mean(dtype=np.float64) for at in (0, stride)]
    assert_close(run.tops[0][0, 0, 0], [*means, 0], "averages")
    assert run.backward([diff])[0][0].sum() == pytest.approx(4 * 9)


# -- stochastic pooling


def stochastic(kernel, stride, ceil=True):
    options = (
        f"pool: STOCHASTIC kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]}"
    )
    return pooling(f"{options} round_mode: {'CEIL' if ceil else 'FLOOR'}")


def picks(x, top, kernel, stride, ceil=True):
    """Return where in its plane each element of `top` was picked; -1 if not in its window.  All of `x` differ."""
    found = np.full(top.shape, -1)
    for ph, pw, rows, columns, _ in windows(x.shape[2:], kernel, stride, (0, 0), ceil):
        for n, c in np.ndindex(*x.shape[:2]):
            places = [h * x.shape[3] + w for h in rows for w in columns if x[n, c, h, w] == top[n, c, ph, pw]]
            found[n, c, ph, pw] = places[0] if places else -1
    return found


UNPADDED = {name: setting for name, setting in SETTINGS.items() if setting[2] == (0, 0)}


@pytest.mark.parametrize("setting", UNPADDED)
def test_stochastic_pool_picks_an_element_of_each_window_and_sends_the_gradient_there(setting):
    kernel, stride, _, ceil, size = UNPADDED[setting]
    x = np.abs(distinct(21, 2, 3, *size)) + distinct(22, 2, 3, *size, gap=1e-5)  # positive, and all differ
    run = run_layer(stochastic(kernel, stride, ceil), [x])
    places = picks(x, run.tops[0], kernel, stride, ceil)
    assert (places >= 0).all()
    diff = distinct(23, *places.shape)
    expected = np.zeros((*x.shape[:2], size[0] * size[1]))
    for index in np.ndindex(*places.shape):
        expected[(*index[:2], places[index])] += diff[index]
    assert_close(run.backward([diff])[0][0], expected.reshape(x.shape), "bottom diff")


def test_stochastic_pool_picks_in_proportion_to_the_elements():
    x = np.tile(np.array([[1, 2], [0, 5]], np.float32), (4, 5, 40, 50))
    top = run_layer(stochastic((2, 2), (2, 2)), [x]).tops[0]
    for value, rate in (1, 1 / 8), (2, 2 / 8), (0, 0), (5, 5 / 8):
        deviation = math.sqrt(rate * (1 - rate) / top.size)
        assert abs((top == value).mean() - rate) <= 4 * deviation


def test_stochastic_pool_picks_anew_in_each_pass_and_the_same_again_with_the_same_seed():
    x = np.abs(random_plane := distinct(24, 2, 3, 16, 16)) + np.sign(random_plane) * 1e-3
    run, other = (run_layer(stochastic((2, 2), (2, 2)), [x]) for _ in range(2))
    assert_close(other.tops[0], run.tops[0], "the same seed and pass", "exact")
    second = other.forward(passes=1)[0]
    assert 0.5 < (second != run.tops[0]).mean() < 0.9
    assert_close(run.forward(passes=1)[0], second, "the same seed, another pass", "exact")
    run.layer.seed += 1
    assert 0.5 < (run.forward(passes=1)[0] != second).mean() < 0.9


def test_neighbouring_windows_and_planes_pick_independently():
    x = np.tile(np.array([[1, 2], [3, 4]], np.float32), (2, 2, 32, 32))
    top = run_layer(stochastic((2, 2), (2, 2)), [x]).tops[0]
    agreement = (0.1**2 + 0.2**2 + 0.3**2 + 0.4**2,) * 3
    pairs = (top[..., 1:], top[..., :-1]), (top[:, :, 1:], top[:, :, :-1]), (top[:, 1:], top[:, :-1])
    for rate, (a, b) in zip(agreement, pairs, strict=True):
        assert abs((a == b).mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / a.size)


@pytest.mark.parametrize("setting", UNPADDED)
def test_stochastic_pool_is_the_weighted_mean_in_a_test(setting):
    kernel, stride, _, ceil, size = UNPADDED[setting]
    x = np.abs(distinct(25, 2, 3, *size))
    x[0, 0] = 0
    x[0, 1] *= -1

    def weighted(bottoms, params):
        top = run.tops[0].astype(np.float64) * np.nan
        for ph, pw, rows, columns, _ in windows(size, kernel, stride, (0, 0), ceil):
            window = bottoms[0][:, :, rows][:, :, :, columns]
            sums, squares = window.sum(axis=(2, 3)), (window**2).sum(axis=(2, 3))
            top[:, :, ph, pw] = np.where(sums > 0, squares / np.where(sums > 0, sums, 1), 0)
        return [top]

    run = run_layer(stochastic(kernel, stride, ceil), [x], TEST)
    assert run.layer.draws_random is False
    assert_close(run.tops[0], weighted([x.astype(np.float64)], [])[0], "top")


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_stochastic_pool_keeps_nan_visible_and_gives_zero_for_zeros_and_empty_windows(phase):
    x = np.zeros((1, 1, 1, 5), np.float32)
    x[0, 0, 0, 3] = np.nan
    run = run_layer(stochastic((1, 1), (1, 3)), [x], phase)  # windows at columns 0, 3 and 6
    np.testing.assert_array_equal(run.tops[0].ravel(), [0, np.nan, 0])


def test_stochastic_pool_of_zeros_picks_the_first():
    run = run_layer(stochastic((2, 2), (2, 2)), [np.zeros((1, 1, 2, 4), np.float32)])
    assert run.backward([np.array([[[[3, 4]]]], np.float32)])[0][0].ravel().tolist() == [3, 0, 4, 0, 0, 0, 0, 0]


def test_stochastic_pool_has_no_gradient_in_a_test():
    run = run_layer(stochastic((2, 2), (2, 2)), [np.abs(distinct(26, 1, 1, 4, 4))], TEST)
    with pytest.raises(NetError, match=r"stochastic pooling has no gradient in phase TEST. Use phase TRAIN"):
        run.backward()


def test_another_plane_size_changes_the_kernel_behind_the_layer():
    run = run_layer(pooling("kernel_size: 2 stride: 2"), [distinct(9, 2, 3, 4, 6)])
    for size in (5, 7), (4, 8), (2, 2):
        x = distinct(10, 1, 3, *size)
        assert_close(run.reshape(x)[0], define("MAX", (2, 2), (2, 2))([x.astype(np.float64)], [])[0], f"{size}")
        diff = np.ones(run.top[0].shape, np.float32)
        assert run.backward([diff])[0][0].sum() == diff.size


@pytest.mark.parametrize("kind", ["MAX", "AVE", "STOCHASTIC"])
def test_no_gradient_is_computed_for_a_bottom_that_wants_none(kind):
    run = run_layer(pooling(f"pool: {kind} kernel_size: 2"), [distinct(11, 1, 1, 3, 3)])
    run.backward(propagate_down=[False])
    assert np.isnan(run.bottom[0].diff).all()


VECTORIZED = ["2x2 tiles", "2x2 clipped", "3x3 overlapping, clipped", "3x3 stride 1 padded", "4x4 stride 2 padded"]


@pytest.mark.parametrize("kind", ["MAX", "AVE"])
@pytest.mark.parametrize("setting", [*VECTORIZED, "wide kernel"])
def test_odd_sizes_that_no_vector_width_divides(setting, kind):
    kernel, stride, pad, ceil, _ = SETTINGS[setting]
    options = f"pool: {kind} kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]} "
    options += f"pad_h: {pad[0]} pad_w: {pad[1]}"
    for width in 34, 61:
        check_gradient(pooling(options), [distinct(12, 3, 5, 6, width)])
        x = distinct(12, 3, 5, 6, width)
        expected = define(kind, kernel, stride, pad, ceil)([x.astype(np.float64)], [])[0]
        assert_close(run_layer(pooling(options), [x]).tops[0], expected, f"width {width}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "pool: STOCHASTIC kernel_size: 2 pad_h: 1 pad_w: 0",
            r"stochastic pooling takes no padding. Expected pad 0, received \(1, 0\)",
        ),
        ("global_pooling: true kernel_size: 2", "with global_pooling the kernel is the whole plane"),
        ("global_pooling: true pad: 1", r"global_pooling pad must be 0 and stride 1. Received pad \(1, 1\), stride"),
        ("pool: MAX", "kernel_size must be given and positive. Received 0 x 0"),
        ("kernel_h: 2 kernel_w: 0", "kernel_size must be given and positive. Received 2 x 0"),
        ("kernel_size: 2 stride: 0", "stride must be given and positive. Received 0 x 0"),
        (
            "kernel_size: 2 kernel_h: 2",
            "expected kernel_size, or kernel_h and kernel_w. Received kernel_size and kernel_h",
        ),
        ("kernel_w: 2", "expected kernel_size, or kernel_h and kernel_w. Received kernel_w"),
        ("kernel_size: 2 stride: 1 stride_w: 1", "expected stride, or stride_h and stride_w. Received stride and"),
        ("kernel_size: 2 pad_h: 1", "expected pad, or pad_h and pad_w. Received pad_h"),
        ("kernel_size: 3 pad_h: 3 pad_w: 1", "pad_h must be smaller than kernel_h. Received pad 3, kernel 3"),
        ("kernel_h: 5 kernel_w: 2 pad: 2", "pad_w must be smaller than kernel_w. Received pad 2, kernel 2"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(NetError, match=message):
        run_layer(pooling(options), [distinct(13, 1, 1, 6, 6)])


@pytest.mark.parametrize(("kind", "word"), [("AVE", "average"), ("STOCHASTIC", "stochastic")])
def test_only_max_pooling_has_a_mask_top(kind, word):
    with pytest.raises(NetError, match=rf"{word} pooling has one top, only MAX writes a mask. Received 2 tops"):
        run_layer(pooling(f"pool: {kind} kernel_size: 2", 'top: "a" top: "b"'), [distinct(14, 1, 1, 6, 6)])


def test_a_bottom_without_four_axes_is_an_error():
    with pytest.raises(
        ShapeError, match=r"four axes \(num, channels, height, width\), received 'bottom_0' \(2, 6, 6\)"
    ):
        run_layer(pooling("kernel_size: 2"), [distinct(15, 2, 6, 6)])


def test_a_kernel_larger_than_its_padded_plane_is_an_error():
    with pytest.raises(ShapeError, match="larger than its padded input along width: kernel 9, input 5 with pad 1"):
        run_layer(pooling("kernel_h: 3 kernel_w: 9 pad: 1"), [distinct(16, 1, 1, 6, 5)])
