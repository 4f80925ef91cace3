"""Accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_lite.errors import DataError, NetError, ShapeError

from .harness import (
    Definition,
    assert_close,
    check_layer,
    check_reference,
    distinct,
    labels,
    reference_names,
    run_layer,
)

ROWS = [distinct(1, 40, 7), labels(2, 7, 40)]
SPATIAL = [distinct(3, 2, 4, 5, 6), labels(4, 4, 2, 1, 5, 6)]
BOTH = pytest.mark.parametrize("bottoms", [ROWS, SPATIAL], ids=["rows", "spatial"])


def accuracy(option: str = "", per_class: bool = False) -> str:
    tops = ' top: "accuracy" top: "per_class"' if per_class else ""
    return f'type: "Accuracy" accuracy_param {{ {option} }}{tops}'


def defined(top_k: int = 1, ignore: int | None = None, axis: int = 1, per_class: bool = False) -> Definition:
    """Return accuracy by sorting the scores of each position (no ties)."""

    def definition(bottoms: list[np.ndarray], params: list[np.ndarray]) -> list[object]:
        moved = np.moveaxis(bottoms[0], axis, -1)
        classes = moved.shape[-1]
        hits: list[list[bool]] = [[] for _ in range(classes)]
        for scores, label in zip(moved.reshape(-1, classes), bottoms[1].ravel().astype(int), strict=True):
            if label != ignore:
                hits[label].append(label in np.argsort(scores)[::-1][:top_k])
        flat = [hit for of_class in hits for hit in of_class]
        tops: list[object] = [np.mean(flat) if flat else 0.0]
        return [*tops, [np.mean(h) if h else 0.0 for h in hits]] if per_class else tops

    return definition


@pytest.mark.parametrize("name", reference_names("Accuracy"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


@BOTH
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("ignore", [None, 1, 255])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_accuracy_follows_its_definition(
    top_k: int, ignore: int | None, per_class: bool, bottoms: list[np.ndarray]
) -> None:
    target = bottoms[1].copy()
    if ignore is not None:
        target.flat[::3] = ignore
    option = f"top_k: {top_k}" + ("" if ignore is None else f" ignore_label: {ignore}")
    definition = defined(top_k, ignore, per_class=per_class)
    check_layer(accuracy(option, per_class), [bottoms[0], target], definition, gradient=False)


@pytest.mark.parametrize(("axis", "label_shape"), [(0, (5, 6)), (1, (4, 6)), (2, (4, 5)), (-1, (4, 5))])
def test_accuracy_follows_its_definition_on_any_axis(axis: int, label_shape: tuple[int, ...]) -> None:
    bottoms = [distinct(5, 4, 5, 6), labels(6, (4, 5, 6)[axis], *label_shape)]
    check_layer(accuracy(f"axis: {axis}"), bottoms, defined(axis=axis), gradient=False, batch_axis=None)


@pytest.mark.parametrize("inner", [1, 2])
def test_ties_count_against_the_label(inner: int) -> None:
    #   scores      label   at least as high     top 1   top 2   top 3
    #   5 5 1       0       one other            miss    hit     hit
    #   5 5 5       1       two others           miss    miss    hit
    #   1 5 5       1       one other            miss    hit     hit
    rows = np.array([[5, 5, 1], [5, 5, 5], [1, 5, 5]], np.float32)
    scores, target = np.repeat(rows[:, :, None], inner, axis=2), np.repeat([[0], [1], [1]], inner, axis=1)
    for top_k, hits in ((1, 0), (2, 2), (3, 3)):
        assert_close(run_layer(accuracy(f"top_k: {top_k}"), [scores, target]).tops[0], hits / 3, f"top {top_k}")


@pytest.mark.parametrize("inner", [1, 2])
def test_a_label_whose_own_score_is_nan_is_a_hit_as_in_the_original(inner: int) -> None:
    scores = np.repeat(np.array([[[np.nan], [1], [2]]], np.float32), inner, axis=2)
    for label, expected in ((0, 1.0), (1, 0.0), (2, 1.0)):
        assert run_layer(accuracy(), [scores, np.full((1, inner), label)]).tops[0] == expected


@BOTH
def test_a_batch_without_labels_has_accuracy_zero(bottoms: list[np.ndarray]) -> None:
    run = run_layer(accuracy("ignore_label: -1", per_class=True), [bottoms[0], np.full_like(bottoms[1], -1)])
    assert run.tops[0] == 0 and not run.tops[1].any()


@BOTH
def test_a_label_that_is_no_class_is_an_error_and_touches_nothing(bottoms: list[np.ndarray]) -> None:
    run = run_layer(accuracy(per_class=True), bottoms)
    target, classes = bottoms[1].copy(), bottoms[0].shape[1]
    target.flat[2] = 1e6
    with pytest.raises(DataError, match=f"label 1e[+]06 of item .* is no class. Expected 0 to {classes - 1} "):
        run.forward(bottoms[0], target)
    expected = defined(per_class=True)(bottoms, [])
    for top, value in zip(run.forward(*bottoms), expected, strict=True):
        assert_close(top, value, "top of the next batch")


def test_accuracy_refuses_more_best_scores_than_classes() -> None:
    with pytest.raises(
        NetError, match=r"top_k must be at most the number of classes, 7. Received top_k 8 for bottom 'bottom_0' \("
    ):
        run_layer(accuracy("top_k: 8"), ROWS)


def test_accuracy_refuses_labels_that_do_not_fit() -> None:
    message = r"one label for each prediction. Expected 40 labels .* received labels 'bottom_1' \(39,\)"
    with pytest.raises(ShapeError, match=message):
        run_layer(accuracy(), [ROWS[0], ROWS[1][1:]])


def test_accuracy_has_no_gradient() -> None:
    run = run_layer(accuracy(), ROWS)
    assert not run.layer.allow_force_backward(0) and not run.layer.allow_force_backward(1)
    run.layer.backward(run.top, [False, False], run.bottom)
    with pytest.raises(NetError, match=r"an accuracy has no gradient. Take away its loss_weight"):
        run.layer.backward(run.top, [True, False], run.bottom)
