"""HingeLoss, MultinomialLogisticLoss and InfogainLoss: the original, float64 definitions, difference quotients."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from caffe_lite.errors import DataError, MissingFileError, NetError, ShapeError, WeightsError
from caffe_lite.layers.loss import CHUNK
from caffe_lite.serialization import blobproto

from .harness import (
    Array,
    Definition,
    assert_close,
    check_gradient,
    check_layer,
    check_reference,
    distinct,
    labels,
    random,
    reference_names,
    run_layer,
)
from .test_softmax import softmax

MULTINOMIAL = 'type: "MultinomialLogisticLoss"'
LEAST = 1e-20
SHAPES = [(6, 5), (3, 2, 3, 4), (1, 1), (5, 1), (2, 33), (2 * CHUNK + 1, 3)]


def hinge(norm: str = "L1", extra: str = "") -> str:
    return f'type: "HingeLoss" {extra} hinge_loss_param {{ norm: {norm} }}'


def infogain(option: str = "", axis: int = 1, source: str = "", extra: str = "") -> str:
    given = f'source: "{source}"' if source else ""
    return f'type: "InfogainLoss" {extra} infogain_loss_param {{ axis: {axis} {given} }} loss_param {{ {option} }}'


def items(blob: Array) -> Array:
    return blob.reshape(len(blob), -1)


def classes_of(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def define_hinge(norm: str) -> Definition:
    """Return the hinge loss as a loop over items and classes."""

    def definition(bottoms: list[Array], params: list[Array]) -> list[float]:
        total = 0.0
        for scores, label in zip(items(bottoms[0]), bottoms[1].ravel(), strict=True):
            for c, x in enumerate(scores):
                margin = max(0.0, 1 - x if c == label else 1 + x)
                total += margin if norm == "L1" else margin**2
        return [total / len(bottoms[0])]

    return definition


def multinomial(bottoms: list[Array], params: list[Array]) -> list[float]:
    pairs = zip(items(bottoms[0]), bottoms[1].ravel(), strict=True)
    return [sum(-math.log(max(p[int(label)], LEAST)) for p, label in pairs) / len(bottoms[0])]


def define_infogain(mode: str = "VALID", ignore: int | None = None, axis: int = 1) -> Definition:
    """Return the infogain loss as a loop over positions; H is the third bottom."""

    def definition(bottoms: list[Array], params: list[Array]) -> list[float]:
        moved = np.moveaxis(softmax(bottoms[0], axis), axis, -1)
        flat = moved.reshape(-1, moved.shape[-1])
        gain = bottoms[2].reshape(flat.shape[1], -1)
        total, valid = 0.0, 0
        for p, label in zip(flat, bottoms[1].ravel(), strict=True):
            if label != ignore:
                total -= float(gain[int(label)] @ np.log(np.maximum(p, LEAST)))
                valid += 1
        outer = math.prod(bottoms[0].shape[:axis])
        normalizer = {"FULL": len(flat), "VALID": valid, "BATCH_SIZE": outer, "NONE": 1}[mode]
        return [total / max(1, normalizer)]

    return definition


ROWS = [random(3, 6, 10, scale=2.0), labels(4, 10, 6), random(5, 10, 10)]
SPATIAL = [random(1, 2, 4, 3, 5, scale=2.0), labels(2, 4, 2, 1, 3, 5), random(6, 1, 1, 4, 4)]
SINGLE = [random(7, 1, 7, scale=2.0), np.full(1, 4, np.float32), random(8, 7, 7)]


@pytest.mark.parametrize("name", reference_names("HingeLoss", "MultinomialLogisticLoss", "InfogainLoss"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


# -- HingeLoss


@pytest.mark.parametrize("norm", ["L1", "L2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_hinge_loss_follows_its_definition(shape: tuple[int, ...], norm: str) -> None:
    # spaced by 0.07 around zero, no score is near the kinks at -1 and 1
    count = math.prod(shape)
    scores = distinct(7, *shape, gap=min(0.07, 4.3 / count)) if count < 200 else random(7, *shape)
    check_layer(hinge(norm), [scores, labels(8, classes_of(shape), shape[0])], define_hinge(norm), gradient=count < 200)


def test_hinge_loss_by_hand() -> None:
    # scores    margins, label in front     L1       L2
    # [2  -3]   label 0: 0 0                0        0
    # [2   0]   label 1: 3 1                4        10
    bottoms = [np.array([[2, -3], [2, 0]], np.float32), np.array([0, 1], np.float32)]
    first, second = run_layer(hinge("L1", "loss_weight: 3"), bottoms), run_layer(hinge("L2"), bottoms)
    assert (first.tops[0], second.tops[0]) == (2, 5)
    assert first.backward()[0][0].tolist() == [[0, 0], [1.5, -1.5]]
    assert second.backward()[0][0].tolist() == [[0, 0], [3, -1]]


# -- MultinomialLogisticLoss


@pytest.mark.parametrize("shape", SHAPES)
def test_multinomial_loss_follows_its_definition(shape: tuple[int, ...]) -> None:
    probabilities = np.random.default_rng(9).uniform(0.2, 1, shape).astype(np.float32)
    target = labels(10, classes_of(shape), shape[0]).reshape(shape[0], *[1] * (len(shape) - 1))
    check_layer(MULTINOMIAL, [probabilities, target], multinomial, gradient=math.prod(shape) < 200, step=1e-3)


def test_multinomial_gradient_is_that_of_a_logarithm_at_the_label_only() -> None:
    bottoms = [np.array([[0.5, 0.25], [0.125, 0]], np.float32), np.array([1, 0], np.float32)]
    run = run_layer(MULTINOMIAL + " loss_weight: 3", bottoms)
    assert run.tops[0] == pytest.approx((math.log(4) + math.log(8)) / 2, rel=1e-6)
    assert run.backward()[0][0].tolist() == [[0, -6], [-12, 0]]


def test_a_probability_counts_as_at_least_1e_minus_20() -> None:
    bottoms = [np.array([[0, 1], [-5, 1]], np.float32), np.array([0, 0], np.float32)]
    run = run_layer(MULTINOMIAL, bottoms)
    assert run.tops[0] == pytest.approx(20 * math.log(10), rel=1e-6)
    assert run.backward()[0][0][:, 0] == pytest.approx([-0.5e20, -0.5e20], rel=1e-6)


# -- InfogainLoss


@pytest.mark.parametrize("bottoms", [ROWS, SPATIAL], ids=["rows", "spatial"])
@pytest.mark.parametrize("mode", ["FULL", "VALID", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("ignore", [None, 2, 0, -1])
def test_infogain_loss_follows_its_definition(mode: str, ignore: int | None, bottoms: list[Array]) -> None:
    scores, target, gain = bottoms[0], bottoms[1].copy(), bottoms[2]
    if ignore is not None:
        target.flat[::4] = ignore
    option = f"normalization: {mode}" + ("" if ignore is None else f" ignore_label: {ignore}")
    definition = define_infogain(mode, ignore)
    check_layer(infogain(option), [scores, target, gain], definition, batch_axis=None, gradient=False)
    run = run_layer(infogain(option), [scores, target, gain])
    single = [scores[:1], target[:1], gain]
    assert_close(run.reshape(*single)[0], definition([array.astype(np.float64) for array in single], [])[0], "one item")


@pytest.mark.parametrize(
    ("shape", "axis", "label_shape"),
    [
        ((3, 4, 5), 2, (3, 4)),
        ((3, 4, 5), -2, (3, 5)),
        ((3, 1, 2), 1, (3, 2)),
        ((2, 3, 17, 19), 1, (2, 17, 19)),
        ((2 * CHUNK + 1, 3), 1, (2 * CHUNK + 1,)),
    ],
)
def test_infogain_loss_follows_its_definition_on_any_axis(
    shape: tuple[int, ...], axis: int, label_shape: tuple[int, ...]
) -> None:
    classes = shape[axis]
    bottoms = [random(11, *shape), labels(12, classes, *label_shape), np.abs(random(13, classes, classes)) + 0.5]
    run = run_layer(infogain(axis=axis), bottoms)
    expected = define_infogain(axis=axis % len(shape))([array.astype(np.float64) for array in bottoms], [])
    assert_close(run.tops[0], expected[0], "loss")


@pytest.mark.parametrize("bottoms", [ROWS, SPATIAL, SINGLE], ids=["rows", "spatial", "batch of one"])
@pytest.mark.parametrize("option", ["", "ignore_label: 2 normalization: BATCH_SIZE"])
def test_infogain_gradient_follows_the_loss(option: str, bottoms: list[Array], tmp_path: Path) -> None:
    source = _write(tmp_path, bottoms[2])
    check_gradient(infogain(option, source=source, extra="loss_weight: 2.5"), bottoms[:2])
    run = run_layer(infogain(option), bottoms)
    from_file = run_layer(infogain(option, source=source), bottoms[:2])
    assert_close(from_file.tops[0], run.tops[0], "H from a file", "exact")
    assert_close(from_file.backward()[0][0], run.backward()[0][0], "H from a file", "exact")


@pytest.mark.parametrize("bottoms", [ROWS, SPATIAL], ids=["rows", "spatial"])
def test_with_the_identity_infogain_loss_is_softmax_loss(bottoms: list[Array]) -> None:
    identity = np.eye(bottoms[0].shape[1], dtype=np.float32)
    run = run_layer(infogain(), [*bottoms[:2], identity])
    other = run_layer('type: "SoftmaxWithLoss"', bottoms[:2])
    assert_close(run.tops[0], other.tops[0], "loss")
    assert_close(run.backward()[0][0], other.backward()[0][0], "diff")


def test_the_second_top_of_infogain_loss_is_the_softmax() -> None:
    run = run_layer(infogain(extra='top: "loss" top: "prob"'), SPATIAL)
    assert_close(run.tops[1], softmax(SPATIAL[0], 1), "prob")


def test_another_matrix_in_the_third_bottom_is_taken_up() -> None:
    run = run_layer(infogain(), ROWS)
    other = [*ROWS[:2], random(14, 10, 10)]
    assert_close(
        run.forward(*other)[0], define_infogain()([array.astype(np.float64) for array in other], [])[0], "loss"
    )
    assert_close(run.backward()[0][0], run_layer(infogain(), other).backward()[0][0], "diff", "exact")


def _write(folder: Path, gain: Array) -> str:
    path = folder / "H.binaryproto"
    path.write_bytes(blobproto.from_array(gain).SerializeToString())
    return str(path)


# -- what all of them share


CASES = {
    "hinge": (hinge(), [random(15, 6, 10), labels(16, 10, 6)]),
    "multinomial": (MULTINOMIAL, [np.abs(random(17, 6, 10)) + 0.1, labels(18, 10, 6)]),
    "infogain": (infogain(), ROWS),
    "infogain spatial": (infogain(), SPATIAL),
}


@pytest.mark.parametrize("case", CASES)
def test_a_label_that_is_no_class_is_an_error_touches_nothing_and_the_next_batch_is_right(case: str) -> None:
    text, bottoms = CASES[case]
    run = run_layer(text, bottoms)
    before, target = run.tops[0], bottoms[1].copy()
    target.flat[2] = 1e6
    with pytest.raises(DataError, match=r"label 1e\+06 of item [02].* is no class. Expected 0 to [93]"):
        run.forward(bottoms[0], target, *bottoms[2:])
    run.top[0].diff[...] = 1
    run.layer.backward(run.top, [True] + [False] * (len(bottoms) - 1), run.bottom)
    diff = np.moveaxis(run.bottom[0].diff, 1, -1).reshape(-1, bottoms[0].shape[1])
    assert not diff[2].any() and diff[1].any()
    assert_close(run.forward(*bottoms)[0], before, "loss", "exact")


@pytest.mark.parametrize("case", CASES)
def test_nan_in_a_score_makes_the_loss_nan(case: str) -> None:
    text, bottoms = CASES[case]
    scores = bottoms[0].copy()
    label = int(bottoms[1].flat[0])
    scores[(0, label, *[0] * (scores.ndim - 2))] = np.nan
    run = run_layer(text, [scores, *bottoms[1:]])
    assert np.isnan(run.tops[0])
    assert np.isnan(run.backward()[0][0]).any()


@pytest.mark.parametrize("case", CASES)
def test_only_the_scores_have_a_gradient_and_only_if_it_is_wanted(case: str) -> None:
    text, bottoms = CASES[case]
    run = run_layer(text, bottoms)
    wanted = [run.layer.allow_force_backward(i) for i in range(len(bottoms))]
    assert wanted == [True] + [False] * (len(bottoms) - 1)
    run.backward(propagate_down=[False] * len(bottoms))
    assert np.isnan(run.bottom[0].diff).all()
    with pytest.raises(NetError, match=r"a loss has no gradient for its labels. Set propagate_down: false"):
        run.backward(propagate_down=[True, True] + [False] * (len(bottoms) - 2))


def test_the_infogain_matrix_has_no_gradient() -> None:
    with pytest.raises(NetError, match=r"the infogain matrix has no gradient. Set propagate_down: false for the third"):
        run_layer(infogain(), ROWS).backward(propagate_down=[True, False, True])


# -- what does not fit together


@pytest.mark.parametrize("text", [hinge(), MULTINOMIAL, infogain()])
def test_scores_and_labels_must_have_the_same_number_of_items(text: str) -> None:
    bottoms = [np.zeros((6, 5)), np.zeros((5, 1)), np.zeros((5, 5))]
    message = (
        r"the same first dimension, one axis at least. Received 'bottom_0' \(6, 5\) and 'bottom_1' \(5, 1\). Check"
    )
    with pytest.raises(ShapeError, match=message):
        run_layer(text, bottoms if "Infogain" in text else bottoms[:2])


@pytest.mark.parametrize("text", [hinge(), MULTINOMIAL, infogain()])
def test_there_must_be_one_label_for_each_item(text: str) -> None:
    bottoms = [np.zeros((6, 5)), np.zeros((6, 2)), np.zeros((5, 5))]
    with pytest.raises(
        ShapeError, match=r"one label for each prediction. Expected 6 labels .* received labels 'bottom_1' \(6, 2\)"
    ):
        run_layer(text, bottoms if "Infogain" in text else bottoms[:2])


def test_the_infogain_matrix_must_be_square_in_the_classes() -> None:
    message = r"the 5 classes. Expected 25 elements for scores 'bottom_0' \(6, 5\), received 'bottom_2' \(4, 5\)"
    with pytest.raises(ShapeError, match=message):
        run_layer(infogain(), [np.zeros((6, 5)), np.zeros(6), np.zeros((4, 5))])


def test_the_infogain_matrix_must_come_from_somewhere(tmp_path: Path) -> None:
    bottoms = [np.zeros((6, 5)), np.zeros(6)]
    with pytest.raises(
        NetError, match=r"the infogain matrix is missing. Expected a third bottom, or infogain_loss_param"
    ):
        run_layer(infogain(), bottoms)
    with pytest.raises(MissingFileError, match=r"H.binaryproto: no such file"):
        run_layer(infogain(source=str(tmp_path / "H.binaryproto")), bottoms)
    (tmp_path / "H.binaryproto").write_text("layer { }")
    with pytest.raises(WeightsError, match=r"H.binaryproto"):
        run_layer(infogain(source=str(tmp_path / "H.binaryproto")), bottoms)


def test_infogain_loss_refuses_the_older_normalize() -> None:
    with pytest.raises(
        NetError, match=r"normalize is not supported here. Use loss_param { normalization: ... } instead"
    ):
        run_layer(infogain("normalize: true"), ROWS)
