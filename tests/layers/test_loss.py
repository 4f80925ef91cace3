"""SoftmaxWithLoss, and the labels that it shares with Accuracy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_lite.errors import DataError, NetError, ShapeError
from caffe_lite.layers.loss import CHUNK

from .harness import (
    Definition,
    LayerRun,
    assert_close,
    check_gradient,
    check_layer,
    check_reference,
    labels,
    random,
    reference_names,
    run_layer,
)
from .test_softmax import softmax

FLT_MIN = float(np.finfo(np.float32).tiny)
SPATIAL = [random(1, 2, 4, 3, 5, scale=2.0), labels(2, 4, 2, 1, 3, 5)]
ROWS = [random(3, 6, 10, scale=2.0), labels(4, 10, 6)]


def loss(option: str = "", axis: int = 1, weight: str = "") -> str:
    return f'type: "SoftmaxWithLoss" loss_param {{ {option} }} softmax_param {{ axis: {axis} }} {weight}'


def defined(mode: str = "VALID", ignore: int | None = None, axis: int = 1) -> Definition:
    """Return the loss as a loop over labels."""

    def definition(bottoms: list[np.ndarray], params: list[np.ndarray]) -> list[float]:
        moved = np.moveaxis(softmax(bottoms[0], axis), axis, -1)
        flat = moved.reshape(-1, moved.shape[-1])
        total, valid = 0.0, 0
        for p, label in zip(flat, bottoms[1].ravel(), strict=True):
            if label != ignore:
                total -= math.log(max(p[int(label)], FLT_MIN))
                valid += 1
        outer = math.prod(bottoms[0].shape[:axis])
        normalizer = {"FULL": len(flat), "VALID": valid, "BATCH_SIZE": outer, "NONE": 1}[mode]
        return [total / max(1, normalizer)]

    return definition


@pytest.mark.parametrize("name", reference_names("SoftmaxWithLoss"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


@pytest.mark.parametrize("bottoms", [ROWS, SPATIAL], ids=["rows", "spatial"])
@pytest.mark.parametrize("mode", ["FULL", "VALID", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("ignore", [None, 2, 0, -1, 255])
def test_loss_follows_its_definition(mode: str, ignore: int | None, bottoms: list[np.ndarray]) -> None:
    scores, target = bottoms[0], bottoms[1].copy()
    if ignore is not None:
        target.flat[::4] = ignore
    option = f"normalization: {mode}" + ("" if ignore is None else f" ignore_label: {ignore}")
    check_layer(loss(option), [scores, target], defined(mode, ignore))


@pytest.mark.parametrize(
    ("option", "mode"),
    [
        ("", "VALID"),
        ("normalize: true", "VALID"),
        ("normalize: false", "BATCH_SIZE"),
        ("normalize: false normalization: FULL", "FULL"),
    ],
)
def test_the_older_normalize_counts_only_without_normalization(option: str, mode: str) -> None:
    target = SPATIAL[1].copy()
    target.flat[::4] = 1
    check_layer(loss(f"ignore_label: 1 {option}"), [SPATIAL[0], target], defined(mode, 1))


@pytest.mark.parametrize(
    ("shape", "axis", "label_shape"),
    [
        ((3, 4, 5), 2, (3, 4)),
        ((3, 4, 5), -1, (3, 4, 1)),
        ((3, 4, 5), -2, (3, 5)),
        ((3, 1, 2), 1, (3, 2)),
        ((2, 3, 17, 19), 1, (2, 17, 19)),
        ((2 * CHUNK + 1, 3), 1, (2 * CHUNK + 1,)),
    ],
)
def test_loss_follows_its_definition_on_any_axis(
    shape: tuple[int, ...], axis: int, label_shape: tuple[int, ...]
) -> None:
    bottoms = [random(5, *shape), labels(6, shape[axis], *label_shape)]
    check_layer(loss(axis=axis), bottoms, defined(axis=axis % len(shape)))


@pytest.mark.parametrize("bottoms", [ROWS, SPATIAL], ids=["rows", "spatial"])
def test_gradient_is_the_probability_less_one_at_the_label_times_the_loss_weight(bottoms: list[np.ndarray]) -> None:
    scores, target = bottoms
    run = run_layer(loss(weight="loss_weight: 2.5"), bottoms)
    classes = np.arange(scores.shape[1]).reshape(-1, *[1] * (scores.ndim - 2))
    one_hot = classes == target.reshape(scores.shape[0], 1, *scores.shape[2:])
    assert_close(run.backward()[0][0], (softmax(scores, 1) - one_hot) * 2.5 / target.size, "diff")
    check_gradient(loss(weight="loss_weight: 2.5"), bottoms)


@pytest.mark.parametrize("bottoms", [ROWS, SPATIAL], ids=["rows", "spatial"])
def test_the_second_top_is_the_softmax_and_survives_the_backward_pass(bottoms: list[np.ndarray]) -> None:
    run = run_layer(loss() + ' top: "loss" top: "prob"', bottoms)
    alone = run_layer(loss(), bottoms)
    assert_close(run.tops[1], softmax(bottoms[0], 1), "prob")
    assert_close(run.tops[0], alone.tops[0], "loss", "exact")
    assert_close(run.backward()[0][0], alone.backward()[0][0], "diff", "exact")
    assert_close(run.top[1].data, run.tops[1], "prob after backward", "exact")


@pytest.mark.parametrize("mode", ["FULL", "VALID", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("bottoms", [ROWS, SPATIAL], ids=["rows", "spatial"])
def test_a_batch_without_labels_has_loss_zero_and_no_gradient(bottoms: list[np.ndarray], mode: str) -> None:
    target = np.full_like(bottoms[1], -1)
    run = run_layer(loss(f"ignore_label: -1 normalization: {mode}"), [bottoms[0], target])
    assert run.tops[0] == 0
    assert not run.backward()[0][0].any()


def test_the_fraction_of_a_label_is_cut_off() -> None:
    scores = random(7, 4, 3)
    whole, broken = np.array([0, 0, 2, 1], np.float32), np.array([0.9, -0.9, 2.5, 1.0], np.float32)
    assert run_layer(loss(), [scores, broken]).tops[0] == run_layer(loss(), [scores, whole]).tops[0]


@pytest.mark.parametrize("bottoms", [ROWS, SPATIAL], ids=["rows", "spatial"])
def test_an_impossible_label_costs_the_logarithm_of_the_smallest_float(bottoms: list[np.ndarray]) -> None:
    scores = np.zeros_like(bottoms[0])
    scores[:, 1] = 1000
    run = run_layer(loss(), [scores, np.zeros_like(bottoms[1])])
    assert run.tops[0] == pytest.approx(-math.log(FLT_MIN), rel=1e-6)


def test_nan_among_the_scores_makes_the_loss_nan() -> None:
    scores = ROWS[0].copy()
    scores[4, 3] = np.nan
    assert np.isnan(run_layer(loss(), [scores, ROWS[1]]).tops[0])


def test_another_number_of_classes_on_the_same_positions_is_taken_up() -> None:
    run = run_layer(loss(), ROWS)
    bottoms = [random(8, 6, 3), labels(9, 3, 6)]
    assert_close(run.reshape(*bottoms)[0], defined()(bottoms, [])[0], "loss")


# -- labels that are no class


def expect_label_error(bottoms: list[np.ndarray], option: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run_layer(loss(option), bottoms)


@pytest.mark.parametrize(
    ("bad", "shown"), [(10, "10"), (-1, "-1"), (3e9, "3e[+]09"), (-3e9, "-3e[+]09"), (np.nan, "nan"), (np.inf, "inf")]
)
def test_a_label_that_is_no_class_names_the_item(bad: float, shown: str) -> None:
    target = ROWS[1].copy()
    target[[3, 5]] = bad
    message = rf"label {shown} of item 3 is no class. Expected 0 to 9 \(10 classes\)[.]"
    expect_label_error([ROWS[0], target], "", message)


def test_a_label_that_is_no_class_names_the_position_and_the_ignored_label() -> None:
    target = SPATIAL[1].copy()
    target[0, 0, 2, 2] = 255
    target[1, 0, 1, 2] = 4
    message = r"label 4 of item 1, position 7 is no class. Expected 0 to 3 \(4 classes\) or ignore_label 255[.]"
    expect_label_error([SPATIAL[0], target], "ignore_label: 255", message)


@pytest.mark.parametrize("item", [0, CHUNK - 1, CHUNK, 2 * CHUNK])
def test_a_label_that_is_no_class_is_found_in_every_chunk(item: int) -> None:
    target = labels(9, 3, 2 * CHUNK + 1)
    target[item] = 3
    expect_label_error([random(8, 2 * CHUNK + 1, 3), target], "", f"label 3 of item {item} is no class")


@pytest.mark.parametrize("bottoms", [ROWS, SPATIAL], ids=["rows", "spatial"])
def test_a_label_that_is_no_class_touches_nothing_and_the_next_batch_is_right(bottoms: list[np.ndarray]) -> None:
    run = run_layer(loss(), bottoms)
    target = bottoms[1].copy()
    target.flat[2] = 1e6
    with pytest.raises(DataError):
        run.forward(bottoms[0], target)
    _assert_only_position_two_has_no_gradient(run)
    assert_close(run.forward(*bottoms)[0], defined()(bottoms, [])[0], "loss")


def _assert_only_position_two_has_no_gradient(run: LayerRun) -> None:
    run.top[0].diff[...] = 1
    run.layer.backward(run.top, [True, False], run.bottom)
    diff = np.moveaxis(run.bottom[0].diff, 1, -1).reshape(-1, run.bottom[0].shape[1])
    np.testing.assert_array_equal(diff.any(axis=1), np.arange(len(diff)) != 2)


# -- what does not fit together


def test_labels_and_predictions_must_have_the_same_number() -> None:
    message = (
        r"Expected 30 labels for .* 'bottom_0' \(2, 4, 3, 5\) with 4 classes, received labels 'bottom_1' \(2, 15, 2\)"
    )
    with pytest.raises(ShapeError, match=message):
        run_layer(loss(), [SPATIAL[0], np.zeros((2, 15, 2))])


@pytest.mark.parametrize(("shape", "shown"), [((10,), r"\(10,\)"), ((), r"\(\)")])
def test_labels_and_predictions_must_have_the_same_first_dimension(shape: tuple[int, ...], shown: str) -> None:
    message = rf"same first dimension, one axis at least. Received 'bottom_0' \(6, 10\) and 'bottom_1' {shown}. Check"
    with pytest.raises(ShapeError, match=message):
        run_layer(loss(), [ROWS[0], np.zeros(shape)])


def test_a_loss_has_no_gradient_for_its_labels() -> None:
    run = run_layer(loss(), ROWS)
    assert [run.layer.allow_force_backward(i) for i in (0, 1)] == [True, False]
    with pytest.raises(NetError, match=r"a loss has no gradient for its labels. Set propagate_down: false"):
        run.backward(propagate_down=[True, True])
