"""Reduction and ArgMax against the original, float64 definitions, difference quotients and rows drawn by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.reduction import CHUNK, ROW_CHUNK, TILE

from .harness import Array, assert_close, check_layer, check_reference, distinct, random, reference_names, run_layer

OPERATIONS: dict[str, Callable[[Array], Array]] = {
    "SUM": lambda x: x.sum(-1),
    "ASUM": lambda x: np.abs(x).sum(-1),
    "SUMSQ": lambda x: (x * x).sum(-1),
    "MEAN": lambda x: x.mean(-1),
}
# axis, bottom's shape, axes that stay
REDUCTIONS = [
    (0, (2, 3, 5, 7), 0),
    (1, (3, 4, 5), 1),
    (-1, (2, 3, 19), 2),
    (2, (2, 5, 1, 1), 2),
    (0, (1,), 0),
    (1, (1, 37), 1),
    (1, (2, CHUNK + 5), 1),
    (0, (3, CHUNK), 0),
]


def reduction(options: str = "") -> str:
    return f'type: "Reduction" reduction_param {{ {options} }}'


def argmax(options: str = "") -> str:
    return f'type: "ArgMax" argmax_param {{ {options} }}'


@pytest.mark.parametrize("name", reference_names("Reduction", "ArgMax"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


# -- Reduction


@pytest.mark.parametrize(("axis", "shape", "kept"), REDUCTIONS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_forward_agrees_with_the_definition_and_backward_with_difference_quotients(
    operation: str, axis: int, shape: tuple[int, ...], kept: int
) -> None:
    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        x = bottoms[0]
        return [-1.5 * OPERATIONS[operation](x.reshape(*x.shape[:kept], -1))]

    x = random(1, *shape)
    x += np.sign(x) * np.float32(0.1)  # away from the kink of the absolute value
    check_layer(reduction(f"operation: {operation} axis: {axis} coeff: -1.5"), [x], definition)


def test_a_reduction_sums_up_everything_by_default() -> None:
    x = random(1, 3, 5)
    assert_close(run_layer(reduction(), [x]).tops[0], x.sum(dtype=np.float64), "top")


def test_the_gradient_of_an_absolute_value_is_zero_at_zero_and_at_nan() -> None:
    run = run_layer(reduction("operation: ASUM"), [np.array([-2, -0.0, 0, np.nan, 3], np.float32)])
    assert run.backward([np.array(4, np.float32)])[0][0].tolist() == [-4, 0, 0, 0, 4]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_reduction_keeps_nan_visible(operation: str) -> None:
    x = random(1, 3, 40)
    x[1, 33] = np.nan
    assert np.isnan(run_layer(reduction(f"axis: 1 operation: {operation}"), [x]).tops[0]).tolist() == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(("operation", "expected"), [("SUM", 0), ("MEAN", np.nan)])
def test_the_sum_of_nothing_is_zero_and_its_mean_nan(operation: str, expected: float) -> None:
    run = run_layer(reduction(f"axis: 1 operation: {operation}"), [np.zeros((2, 0))])
    assert_close(run.tops[0], [expected] * 2, "top", "exact")


def test_a_reduction_leaves_a_diff_alone_that_is_not_wanted() -> None:
    run = run_layer(reduction(), [random(1, 3)])
    run.backward(propagate_down=[False])
    assert np.isnan(run.bottom[0].diff).all()


def test_a_reduction_refuses_an_axis_that_does_not_exist() -> None:
    with pytest.raises(ShapeError, match=r"axis 2 does not exist. Expected -2 to 1"):
        run_layer(reduction("axis: 2"), [random(1, 2, 3)])


# -- ArgMax


def order(values: Array, top_k: int) -> list[int]:
    """Return the places of the largest values; of equal ones, the last comes first."""
    return sorted(range(len(values)), key=lambda i: (values[i], i), reverse=True)[:top_k]


def by_item(top_k: int, with_values: bool) -> Callable[[list[Array], list[Array]], list[Array]]:
    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        items = bottoms[0].reshape(bottoms[0].shape[0], -1)
        places = np.array([order(item, top_k) for item in items])
        values = np.take_along_axis(items, places, 1)
        rows = np.stack([places, values], 1) if with_values else places[:, None]
        return [rows.reshape(*rows.shape, *[1] * (bottoms[0].ndim - 3))]

    return definition


def along_axis(axis: int, top_k: int, with_values: bool) -> Callable[[list[Array], list[Array]], list[Array]]:
    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        places = np.apply_along_axis(order, axis, bottoms[0], top_k)
        return [np.take_along_axis(bottoms[0], places, axis) if with_values else places]

    return definition


@pytest.mark.parametrize("with_values", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("shape", [(3, 19), (1, 5), (2, 3, 2, 4), (2, 2, 1, 3, 2), (2, 3 * ROW_CHUNK + 1)])
def test_argmax_orders_each_item(shape: tuple[int, ...], top_k: int, with_values: bool) -> None:
    text = argmax(f"top_k: {top_k} out_max_val: {'true' if with_values else 'false'}")
    for x in distinct(1, *shape), np.round(random(2, *shape)):  # the second one full of ties
        check_layer(text, [x], by_item(top_k, with_values), gradient=False)


@pytest.mark.parametrize("with_values", [False, True])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize(
    ("axis", "shape"), [(1, (2, 5, 3, 7)), (0, (3, 19)), (-1, (2, 3, 4)), (-2, (2, 3, TILE + 9)), (1, (1, 4, 1, 1))]
)
def test_argmax_orders_along_an_axis(axis: int, shape: tuple[int, ...], top_k: int, with_values: bool) -> None:
    text = argmax(f"axis: {axis} top_k: {top_k} out_max_val: {'true' if with_values else 'false'}")
    for x in distinct(1, *shape), np.round(random(2, *shape)):
        check_layer(text, [x], along_axis(axis, top_k, with_values), gradient=False, batch_axis=0 if axis else None)


@pytest.mark.parametrize("inner", [1, 3])
def test_argmax_of_a_row_by_hand(inner: int) -> None:
    #   values   -0.0  0  -inf  inf  NaN  inf  -1       NaN is above all, the later of equal ones first, -0 equals 0
    #   order     5    4   7     3    1    2    6
    row = np.array([-0.0, 0, -np.inf, np.inf, np.nan, np.inf, -1], np.float32)
    x = np.repeat(row[None, :, None], inner, axis=2)
    places = run_layer(argmax("axis: 1 top_k: 7"), [x]).tops[0]
    assert all(places[0, :, i].tolist() == [4, 5, 3, 1, 0, 6, 2] for i in range(inner))
    values = run_layer(argmax("axis: 1 top_k: 7 out_max_val: true"), [x]).tops[0]
    assert_close(values[0], x[0, [4, 5, 3, 1, 0, 6, 2]], "values", "exact")
    assert np.signbit(values[0, 4]).all() and not np.signbit(values[0, 3]).any()


def test_argmax_of_more_than_four_billionths_of_a_difference_is_exact() -> None:
    x = np.ones((1, 9), np.float32)
    x[0, 3] = np.nextafter(np.float32(1), np.float32(2))
    assert run_layer(argmax(), [x]).tops[0].ravel().tolist() == [3]


def test_argmax_has_no_gradient() -> None:
    run = run_layer(argmax(), [random(1, 2, 3)])
    assert not run.layer.allow_force_backward(0)
    run.layer.backward(run.top, [False], run.bottom)
    with pytest.raises(NetError, match=r"an ArgMax has no gradient. Set propagate_down: false"):
        run.layer.backward(run.top, [True], run.bottom)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ("top_k: 0", NetError, r"top_k must be positive. Received 0"),
        (
            "top_k: 7",
            ShapeError,
            r"at most the number of elements to choose from, 6. Received top_k 7 for bottom 'bottom_0' \(",
        ),
        ("top_k: 4 axis: 1", ShapeError, r"at most the number of elements to choose from, 3. Received top_k 4"),
        ("axis: 3", ShapeError, "axis 3 does not exist"),
    ],
)
def test_argmax_refuses_what_does_not_fit(options: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_layer(argmax(options), [random(1, 2, 3, 2)])


def test_argmax_refuses_a_number() -> None:
    with pytest.raises(ShapeError, match="axis 0 does not exist"):
        run_layer(argmax(), [np.array(3.0)])
