"""Eltwise against the original, float64 definitions, difference quotients and columns drawn by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError

from .harness import Array, assert_close, check_layer, check_reference, distinct, random, reference_names, run_layer

SHAPES = [(2, 3, 5, 7), (1, 19), (3, 1), ()]


def eltwise(options: str = "") -> str:
    return f'type: "Eltwise" eltwise_param {{ {options} }}'


def weighted(*coefficients: float) -> tuple[str, Callable[[list[Array]], Array]]:
    options = " ".join(f"coeff: {coefficient}" for coefficient in coefficients)
    return options, lambda x: np.sum([c * each for c, each in zip(coefficients, x, strict=True)], axis=0)


# options, definition, number of bottoms
OPERATIONS = {
    "sum": ("", lambda x: np.sum(x, axis=0), 2),
    "sum of five": ("operation: SUM", lambda x: np.sum(x, axis=0), 5),
    "weighted sum": (*weighted(0.5, -2), 2),
    "weighted sum of four": (*weighted(1, 0.25, -3, 0), 4),
    "product": ("operation: PROD", lambda x: np.prod(x, axis=0), 2),
    "product of four": ("operation: PROD", lambda x: np.prod(x, axis=0), 4),
    "unstable product": ("operation: PROD stable_prod_grad: false", lambda x: np.prod(x, axis=0), 3),
    "maximum": ("operation: MAX", lambda x: np.max(x, axis=0), 2),
    "maximum of five": ("operation: MAX", lambda x: np.max(x, axis=0), 5),
    "maximum with coefficients that are ignored": ("operation: MAX coeff: 2 coeff: -1", lambda x: np.max(x, axis=0), 2),
}


def inputs(bottoms: int, shape: tuple[int, ...]) -> list[Array]:
    """Return blobs without ties and away from 0."""
    values = distinct(3, bottoms, *shape)
    return list(values + np.sign(values) * np.float32(0.2))


@pytest.mark.parametrize("name", reference_names("Eltwise"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_forward_agrees_with_the_definition_and_backward_with_difference_quotients(
    operation: str, shape: tuple[int, ...]
) -> None:
    options, definition, bottoms = OPERATIONS[operation]
    check_layer(
        eltwise(options),
        inputs(bottoms, shape),
        lambda bottoms, params: [definition(bottoms)],
        batch_axis=0 if shape else None,
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_only_the_diffs_that_are_wanted_are_written(operation: str) -> None:
    options, _, bottoms = OPERATIONS[operation]
    run = run_layer(eltwise(options), inputs(bottoms, (2, 3)))
    diffs = run.backward(propagate_down=[False] + [True] * (bottoms - 1))[0]
    assert diffs[0] is None and np.isnan(run.bottom[0].diff).all()
    assert all(np.isfinite(diff).all() for diff in diffs[1:])


def test_of_equal_maxima_the_second_bottom_wins_and_further_ones_lose() -> None:
    #   bottoms    1 1 0 | 2 2 2 | 0 3 3 | 4 0 4 | 5 4 5
    #   winner       1   |   1   |   1   |   0   |   0
    columns = np.array([[1, 1, 0], [2, 2, 2], [0, 3, 3], [4, 0, 4], [5, 4, 5]], np.float32)
    run = run_layer(eltwise("operation: MAX"), list(columns.T))
    assert run.tops[0].tolist() == [1, 2, 3, 4, 5]
    diffs = run.backward([np.array([10, 20, 30, 40, 50], np.float32)])[0]
    assert [diff.tolist() for diff in diffs] == [[0, 0, 0, 40, 50], [10, 20, 30, 0, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("operation", ["SUM", "PROD", "MAX"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_stays_visible(operation: str, place: int) -> None:
    bottoms = list(distinct(4, 3, 2, 9))
    bottoms[place][1, 4] = np.nan
    top = run_layer(eltwise(f"operation: {operation}"), bottoms).tops[0]
    assert np.argwhere(np.isnan(top)).tolist() == [[1, 4]]


def test_a_maximum_of_minus_infinities_is_minus_infinity() -> None:
    run = run_layer(eltwise("operation: MAX"), [np.full(3, -np.inf)] * 3)
    assert run.tops[0].tolist() == [-np.inf] * 3
    assert [diff.tolist() for diff in run.backward([np.ones(3, np.float32)])[0]] == [[0] * 3, [1] * 3, [0] * 3]


def test_the_stable_gradient_of_a_product_survives_a_zero_and_the_other_does_not() -> None:
    bottoms = [np.array([0, 2], np.float32), np.array([3, 4], np.float32), np.array([5, 6], np.float32)]
    diff = np.array([10, 100], np.float32)
    stable = run_layer(eltwise("operation: PROD"), bottoms).backward([diff])[0]
    assert [each.tolist() for each in stable] == [[150, 2400], [0, 1200], [0, 800]]
    unstable = run_layer(eltwise("operation: PROD stable_prod_grad: false"), bottoms).backward([diff])[0]
    assert np.isnan(unstable[0][0]) and unstable[0][1] == 2400


def test_a_maximum_counts_to_the_last_bottom_its_mask_can_hold() -> None:
    bottoms = [np.full(1, k, np.float32) for k in range(256)]
    diffs = run_layer(eltwise("operation: MAX"), bottoms).backward([np.ones(1, np.float32)])[0]
    assert_close(np.ravel(diffs), np.eye(256)[255], "diffs", "exact")
    with pytest.raises(NetError, match=r"a maximum has at most 256 bottoms. Received 257"):
        run_layer(eltwise("operation: MAX"), [*bottoms, bottoms[0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "coeff: 1",
            "coeff must be given once per bottom or not at all. Expected 2, received 1 for 'bottom_0' .*'bottom_1' ",
        ),
        ("operation: PROD coeff: 1 coeff: 2", "only SUM takes coefficients. Received 2 coeff with PROD"),
    ],
)
def test_eltwise_refuses_coefficients_that_do_not_fit(options: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        run_layer(eltwise(options), [random(1, 3), random(2, 3)])


def test_eltwise_refuses_bottoms_of_different_shapes() -> None:
    message = r"the same shape. Expected that of 'bottom_0' \(2, 3\), received 'bottom_2' \(3, 2\). Use Crop"
    with pytest.raises(ShapeError, match=message):
        run_layer(eltwise(), [random(1, 2, 3), random(2, 2, 3), random(3, 3, 2)])
