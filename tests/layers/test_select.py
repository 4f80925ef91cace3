"""BatchReindex and Filter, by themselves and within a net."""

from __future__ import annotations

import numpy as np
import pytest
from nets import build

from caffe_lite.errors import DataError, NetError, ShapeError
from caffe_lite.layers.concat import PIECE

from .harness import Array, assert_close, check_layer, check_reference, random, run_layer

REINDEX = 'type: "BatchReindex"'


def filters(tops: int = 1) -> str:
    return 'type: "Filter" ' + " ".join(f'top: "t{i}"' for i in range(tops))


@pytest.mark.parametrize("name", ["batch_reindex", "filter"])
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


# -- BatchReindex


def reindexed(bottoms: list[Array], params: list[Array]) -> list[Array]:
    return [bottoms[0][bottoms[1].astype(int)]]


@pytest.mark.parametrize(
    ("shape", "index"),
    [
        ((5, 3, 2), [3, 0, 0, 4, 2, 3, 3]),
        ((1, 19), [0, 0, 0]),
        ((4,), [2]),
        ((3, 1), [2, 1, 0]),
        ((3, 4), [1.9, 0.5]),
        ((3, 4), []),
        ((2, 3, PIECE), [1, 0, 1]),
    ],
)
def test_batch_reindex_picks_items_and_adds_their_gradients(shape: tuple[int, ...], index: list[float]) -> None:
    bottoms = [random(1, *shape), np.array(index, np.float32)]
    check_layer(REINDEX, bottoms, reindexed, batch_axis=None)
    diff = random(2, len(index), *shape[1:])
    expected = np.zeros(shape)
    for each, item in zip(diff, index, strict=True):
        expected[int(item)] += each
    assert_close(run_layer(REINDEX, bottoms).backward([diff])[0][0], expected, "diff")


def test_batch_reindex_follows_another_batch() -> None:
    run = run_layer(REINDEX, [random(1, 5, 3), np.array([4, 4])])
    x, index = random(2, 7, 2), np.array([6, 5, 0], np.float32)
    assert_close(run.reshape(x, index)[0], x[[6, 5, 0]], "top", "exact")


@pytest.mark.parametrize("bad", [-1, -0.25, 5, 1e9, np.nan, np.inf])
def test_an_index_outside_the_batch_is_an_error_and_touches_nothing(bad: float) -> None:
    x, index = random(1, 5, 3), np.array([2, 4, 1, 0], np.float32)
    run = run_layer(REINDEX, [x, index])
    wrong = index.copy()
    wrong[[1, 3]] = bad
    with pytest.raises(DataError, match=r"index .* at position 1 is no item of the batch. Expected 0 to 4"):
        run.forward(x, wrong)
    assert not run.top[0].data[[1, 3]].any()
    run.layer.backward(run.top, [True, False], run.bottom)
    assert_close(run.forward(x, index)[0], x[[2, 4, 1, 0]], "top of the next batch", "exact")


def test_indices_have_no_gradient() -> None:
    run = run_layer(REINDEX, [random(1, 5, 3), np.array([1, 1])])
    assert [run.layer.allow_force_backward(i) for i in range(2)] == [True, False]
    run.backward(propagate_down=[False, False])
    assert np.isnan(run.bottom[0].diff).all()
    with pytest.raises(NetError, match=r"indices have no gradient. Set propagate_down: false for the second bottom"):
        run.layer.backward(run.top, [True, True], run.bottom)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(5, 3), (2, 1)], r"the indices must have one axis. Received 'bottom_1' \(2, 1\)"),
        ([(), (2,)], "axis 0 does not exist"),
    ],
)
def test_batch_reindex_refuses_what_does_not_fit(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        run_layer(REINDEX, [np.zeros(shape) for shape in shapes])


# -- Filter


def filtered(bottoms: list[Array], params: list[Array]) -> list[Array]:
    *items, selector = bottoms
    return [each[selector.ravel() != 0] for each in items]


@pytest.mark.parametrize(
    "selector", [[0, 1, 0, 0, 2, -3], [1] * 6, [0] * 6, [0, 0, 0, 0, 0, 0.5], [np.nan, 0, 0, 0, 0, 0]]
)
@pytest.mark.parametrize("shape", [(6, 3, 2), (6,), (6, 1, 19), (6, PIECE + 1)])
def test_filter_keeps_the_selected_items_and_their_gradients(shape: tuple[int, ...], selector: list[float]) -> None:
    bottoms = [random(1, *shape), np.array(selector, np.float32)]
    run = check_layer(filters(), bottoms, filtered)
    diff, expected = random(2, *run.top[0].shape), np.zeros(shape)
    expected[np.array(selector) != 0] = diff
    assert_close(run.backward([diff])[0][0], expected, "diff", "exact")


def test_filter_filters_several_bottoms_alike() -> None:
    bottoms = [random(1, 4, 3), random(2, 4), random(3, 4, 2, 2), np.array([1, 0, 0, 1]).reshape(4, 1, 1)]
    check_layer(filters(3), bottoms, filtered)


def test_the_number_of_selected_items_changes_from_pass_to_pass() -> None:
    x = random(1, 4, 3)
    run = run_layer(filters(), [x, np.array([1, 0, 0, 1])])
    for selector in [0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]:
        expected = x[np.array(selector) != 0]
        assert_close(run.forward(x, np.array(selector))[0], expected, "top", "exact")
        assert run.top[0].shape == expected.shape


NET = """
force_backward: true
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 5 dim: 2 } } }
layer { name: "s" type: "Input" top: "s" input_param { shape { dim: 5 } } }
layer { name: "f" type: "Filter" bottom: "x" bottom: "s" top: "y" }
layer { name: "sum" type: "Reduction" bottom: "y" top: "sum" reduction_param { operation: SUMSQ } loss_weight: 1 }
"""


def test_a_net_follows_a_filter_forward_and_backward() -> None:
    net = build(NET)
    assert net.blobs["y"].shape == (5, 2)  # before the first pass
    for seed, selector in enumerate(
        [[1, 0, 1, 1, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    ):
        x, kept = random(seed, 5, 2), np.array(selector, bool)
        net.blobs["x"].data[...], net.blobs["s"].data[...] = x, selector
        assert_close(net.forward()["sum"], np.sum(x[kept].astype(np.float64) ** 2), "sum")
        assert net.blobs["y"].shape == (sum(selector), 2)
        net.backward()
        assert_close(net.blobs["x"].diff, np.where(kept[:, None], 2 * x, 0), "diff", "exact")


def test_a_filter_starts_anew_with_a_batch_of_another_size() -> None:
    run = run_layer(filters(), [random(1, 4, 3), np.array([1, 0, 0, 1])])
    for blob, shape in zip(run.bottom, [(3, 2), (3,)], strict=True):
        blob.reshape(shape)
    run.layer.reshape(run.bottom, run.top)
    assert run.top[0].shape == (3, 2)


def test_a_selector_has_no_gradient() -> None:
    run = run_layer(filters(), [random(1, 4, 3), np.array([1, 0, 0, 1])])
    assert [run.layer.allow_force_backward(i) for i in range(2)] == [True, False]
    run.backward(propagate_down=[False, False])
    assert np.isnan(run.bottom[0].diff).all()
    with pytest.raises(NetError, match=r"a selector has no gradient. Set propagate_down: false for the last bottom"):
        run.layer.backward(run.top, [True, True], run.bottom)


@pytest.mark.parametrize(
    ("tops", "shapes", "error", "message"),
    [
        (
            2,
            [(4, 3), (4,)],
            NetError,
            r"each bottom but the last, the selector, needs a top. Expected 1 tops, received 2 for 'bottom_0' \(",
        ),
        (
            1,
            [(4, 3), (4, 2)],
            ShapeError,
            r"one element an item. Expected \(4\) or \(4, 1, ...\), received 'bottom_1' \(4, 2\)",
        ),
        (
            1,
            [(3, 3), (4,)],
            ShapeError,
            r"as many items as the selector, 4. Received 'bottom_0' \(3, 3\) for selector 'bottom_1' \(",
        ),
        (1, [(4, 3), ()], ShapeError, "axis 0 does not exist"),
    ],
)
def test_filter_refuses_what_does_not_fit(
    tops: int, shapes: list[tuple[int, ...]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_layer(filters(tops), [np.ones(shape) for shape in shapes])
