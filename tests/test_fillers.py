"""The fillers against their definitions; random ones by their moments, at sample sizes where five sigma is narrow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_lite.errors import NetError, ShapeError
from caffe_lite.fillers import FILLERS, fill
from caffe_lite.proto import caffe_pb2

MATRIX = (40, 50, 5, 4)  # fan_in 1000, fan_out 800


def filled(text: str, shape: tuple[int, ...] = MATRIX, seed: int = 3) -> np.ndarray:
    return fill(text_format.Parse(text, caffe_pb2.FillerParameter()), shape, np.random.default_rng(seed))


def assert_moments(values: np.ndarray, mean: float, std: float) -> None:
    """Fail unless mean and standard deviation are within five standard errors (kurtosis at most the normal's)."""
    sample = values.astype(np.float64)
    assert abs(sample.mean() - mean) < 5 * std / math.sqrt(sample.size)
    assert abs(sample.std() / std - 1) < 5 / math.sqrt(2 * sample.size)


@pytest.mark.parametrize("kind", sorted(FILLERS))
def test_every_filler_returns_float32_of_the_shape_and_repeats_with_the_seed(kind: str) -> None:
    shape = (6, 2, 3, 3)
    text = f'type: "{kind}" value: 2 max: 3 std: 2'
    values = filled(text, shape)
    assert values.shape == shape and values.dtype == np.float32 and values.flags.writeable
    np.testing.assert_array_equal(values, filled(text, shape))
    if kind not in ("constant", "bilinear"):
        assert not np.array_equal(values, filled(text, shape, seed=4))


def test_an_empty_filler_parameter_means_zero() -> None:
    np.testing.assert_array_equal(filled("", (2, 3)), np.zeros((2, 3)))


def test_constant_fills_even_a_blob_without_axes() -> None:
    assert filled('type: "constant" value: 0.25', ()).item() == 0.25


def test_uniform_lies_between_min_and_max_and_spreads_evenly() -> None:
    values = filled('type: "uniform" min: -1 max: 3')
    assert values.min() >= -1 and values.max() <= 3
    assert_moments(values, 1, 4 / math.sqrt(12))


def test_uniform_with_equal_bounds_is_that_value() -> None:
    np.testing.assert_array_equal(filled('type: "uniform" min: 2 max: 2', (3,)), [2, 2, 2])


def test_gaussian_has_the_mean_and_the_standard_deviation() -> None:
    values = filled('type: "gaussian" mean: 3 std: 0.5')
    assert_moments(values, 3, 0.5)
    assert abs(np.mean(np.abs(values - 3) < 0.5) - 0.6827) < 0.012


def test_sparse_keeps_an_element_with_probability_sparse_over_the_first_axis() -> None:
    values = filled('type: "gaussian" std: 2 sparse: 10', (40, 1000))
    kept = values != 0
    assert abs(kept.mean() - 10 / 40) < 5 * math.sqrt(0.25 * 0.75 / values.size)
    assert_moments(values[kept], 0, 2)


def test_sparse_zero_keeps_nothing_and_sparse_of_all_outputs_keeps_everything() -> None:
    assert not filled('type: "gaussian" sparse: 0', (4, 9)).any()
    assert filled('type: "gaussian" sparse: 4', (4, 9)).all()


def test_positive_unitball_has_positive_rows_that_sum_to_one() -> None:
    values = filled('type: "positive_unitball"', (7, 3, 5))
    assert (values >= 0).all() and values.std() > 0.01
    np.testing.assert_allclose(values.reshape(7, -1).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("norm", "n"), [("", 1000), ("variance_norm: FAN_IN", 1000), ("variance_norm: FAN_OUT", 800), ("AVERAGE", 900)]
)
def test_xavier_and_msra_divide_by_the_chosen_fan(norm: str, n: int) -> None:
    norm = f"variance_norm: {norm}" if norm == "AVERAGE" else norm
    values = filled(f'type: "xavier" {norm}')
    assert 0.999 * math.sqrt(3 / n) < np.abs(values).max() <= math.sqrt(3 / n) * (1 + 1e-6)
    assert_moments(values, 0, math.sqrt(1 / n))
    assert_moments(filled(f'type: "msra" {norm}'), 0, math.sqrt(2 / n))


def test_a_blob_with_one_axis_has_fan_in_one_and_fan_out_its_length() -> None:
    assert np.abs(filled('type: "xavier"', (4000,))).max() == pytest.approx(math.sqrt(3), rel=0.01)
    fan_out = filled('type: "xavier" variance_norm: FAN_OUT', (4000,))
    assert np.abs(fan_out).max() == pytest.approx(math.sqrt(3 / 4000), rel=0.01)


def test_bilinear_interpolates_linearly_from_the_centre() -> None:
    # 4 wide is what upsamples by 2: the ramp 1/4 3/4 3/4 1/4, and its products.
    ramp = np.array([0.25, 0.75, 0.75, 0.25])
    values = filled('type: "bilinear"', (2, 3, 4, 4))
    np.testing.assert_array_equal(values, np.broadcast_to(np.outer(ramp, ramp), (2, 3, 4, 4)))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_bilinear_follows_the_formula_for_odd_and_even_sizes(size: int) -> None:
    factor = math.ceil(size / 2)
    center = (size - 1) / (2 * factor)
    expected = [
        [(1 - abs(x / factor - center)) * (1 - abs(y / factor - center)) for x in range(size)] for y in range(size)
    ]
    np.testing.assert_allclose(filled('type: "bilinear"', (1, 1, size, size))[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('type: "xaver"', "unknown filler type 'xaver'. Did you mean 'xavier'[?] Known types: constant, "),
        ('type: "?"', "unknown filler type '[?]'. Known types: .*, bilinear[.]"),
        ('type: "msra" sparse: 3', "sparse belongs to the gaussian filler. Received sparse 3, type 'msra'"),
        ('type: "uniform" min: 2', "a uniform filler needs min <= max. Received min 2, max 1"),
        ('type: "gaussian" std: -0.1', "a gaussian filler needs std > 0. Received std -0.1"),
        ('type: "gaussian" sparse: 3', r"sparse must be -1 \(off\) or 0 to 2 for shape \(2, 3\). Received 3"),
        ('type: "gaussian" sparse: -2', r"sparse must be -1 \(off\) or 0 to 2 for shape \(2, 3\). Received -2"),
    ],
)
def test_options_that_cannot_work_are_refused(text: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        filled(text, (2, 3))


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ('type: "msra"', (2, 0), r"a msra filler needs at least one element. Received shape \(2, 0\)"),
        ('type: "xavier"', (), r"a xavier filler like this needs at least one axis. Received shape \(\)"),
        ('type: "bilinear"', (2, 3, 3), r"a bilinear filler needs a square kernel, .* Received shape \(2, 3, 3\)"),
        ('type: "bilinear"', (1, 1, 3, 4), r"a square kernel, .* Received shape \(1, 1, 3, 4\)"),
    ],
)
def test_shapes_that_cannot_be_filled_are_refused(text: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        filled(text, shape)
