"""EuclideanLoss and ContrastiveLoss against the original, float64 definitions and difference quotients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.distance_loss import CHUNK

from .harness import (
    Array,
    Definition,
    assert_close,
    check_gradient,
    check_layer,
    check_reference,
    random,
    reference_names,
    run_layer,
)

EUCLIDEAN = 'type: "EuclideanLoss"'


def contrastive(options: str = "", extra: str = "") -> str:
    return f'type: "ContrastiveLoss" {extra} contrastive_loss_param {{ {options} }}'


def euclidean(bottoms: list[Array], params: list[Array]) -> list[float]:
    a, b = bottoms[0].reshape(len(bottoms[0]), -1), bottoms[1].reshape(len(bottoms[1]), -1)
    return [sum(((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)) / (2 * len(a))]


def define(margin: float, legacy: bool = False) -> Definition:
    """Return the contrastive loss as a loop over pairs."""

    def definition(bottoms: list[Array], params: list[Array]) -> list[float]:
        total = 0.0
        for a, b, label in zip(*bottoms[:2], bottoms[2].ravel(), strict=True):
            squared = float(((a - b) ** 2).sum())
            if int(label):
                total += squared
            elif legacy:
                total += max(margin - squared, 0)
            else:
                total += max(margin - math.sqrt(squared), 0) ** 2
        return [total / (2 * len(bottoms[0]))]

    return definition


def pairs(seed: int, num: int, channels: int, tail: tuple[int, ...] = (), scale: float = 0.5) -> list[Array]:
    """Return a, b and labels: a third of the pairs is similar."""
    shape = (num, channels, *tail)
    label = (np.arange(num) % 3 == 1).astype(np.float32)
    return [random(seed, *shape, scale=scale), random(seed + 1, *shape, scale=scale), label]


@pytest.mark.parametrize("name", reference_names("EuclideanLoss", "ContrastiveLoss"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


# -- EuclideanLoss


@pytest.mark.parametrize(
    ("shape", "other"),
    [
        ((6, 5), (6, 5)),
        ((3, 2, 5, 7), (3, 70)),
        ((4,), (4,)),
        ((1, 1), (1, 1, 1)),
        ((3, CHUNK + 1), (3, CHUNK + 1)),
        ((17, CHUNK // 16), (17, CHUNK // 16)),
    ],
)
def test_euclidean_loss_is_half_the_squared_distance_per_item(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    check_layer(EUCLIDEAN, [random(1, *shape), random(2, *other)], euclidean)


def test_euclidean_gradients_are_the_differences_times_the_loss_weight() -> None:
    a, b = random(3, 6, 7), random(4, 6, 7)
    first, second = run_layer(EUCLIDEAN + " loss_weight: 2.5", [a, b]).backward()[0]
    assert_close(first, (a.astype(np.float64) - b) * 2.5 / 6, "diff of the first bottom")
    assert_close(second, (b.astype(np.float64) - a) * 2.5 / 6, "diff of the second bottom")


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_euclidean_loss_computes_only_the_gradients_that_are_wanted(wanted: tuple[bool, bool]) -> None:
    run = run_layer(EUCLIDEAN, [random(3, 6, 7), random(4, 6, 7)])
    run.backward(propagate_down=wanted)
    assert [not np.isnan(blob.diff).any() for blob in run.bottom] == list(wanted)
    assert [run.layer.allow_force_backward(i) for i in (0, 1)] == [True, True]


def test_euclidean_loss_sums_many_elements_without_losing_the_small_ones() -> None:
    # one float32 sum over all of them would stop growing at 2^24
    count = 20_000_000
    run = run_layer(EUCLIDEAN, [np.ones((1, count), np.float32), np.zeros((1, count), np.float32)])
    assert run.tops[0] == count / 2


def test_nan_makes_a_distance_loss_nan() -> None:
    bottoms = pairs(5, 6, 4)
    bottoms[1][2, 3] = np.nan
    assert np.isnan(run_layer(EUCLIDEAN, bottoms[:2]).tops[0])
    for options in "", "legacy_version: true":
        assert np.isnan(run_layer(contrastive(options), bottoms).tops[0])


# -- ContrastiveLoss


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("margin", [1.0, 2.5])
@pytest.mark.parametrize(("num", "channels", "tail"), [(7, 5, ()), (3, 2, (1, 1)), (1, 1, ()), (4, 33, (1,))])
def test_contrastive_loss_follows_its_definition(
    num: int, channels: int, tail: tuple[int, ...], margin: float, legacy: bool
) -> None:
    text = contrastive(f"margin: {margin} legacy_version: {'true' if legacy else 'false'}")
    check_layer(text, pairs(6, num, channels, tail, 0.6 / math.sqrt(channels)), define(margin, legacy), gradient=False)


@pytest.mark.parametrize(("num", "channels"), [(1, 13), (5, 1), (1, 1), (9, 33)])
@pytest.mark.parametrize("options", ["", "margin: 2.5", "margin: 4 legacy_version: true"])
def test_contrastive_gradients_follow_the_loss_for_odd_shapes(options: str, num: int, channels: int) -> None:
    a, b, label = pairs(8, num, channels, scale=0.3 / math.sqrt(channels))
    a = b + np.sign(a - b) * (np.abs(a - b) + np.float32(0.3 / math.sqrt(channels)))
    check_gradient(contrastive(options), [a, b, label], step=1e-3)


@pytest.mark.parametrize("options", ["margin: 2.5", "margin: 4 legacy_version: true"])
def test_contrastive_gradients_follow_the_loss(options: str) -> None:
    # distances well away from 0 make the 1e-4 in the gradient small; pairs 0 and 3 are within the margin, 6 is beyond
    bottoms = pairs(8, 7, 5, scale=0.5)
    bottoms[0][6] += 9
    check_gradient(contrastive(options), bottoms, step=1e-3)
    assert not run_layer(contrastive(options), bottoms).backward()[0][0][6].any()


def test_contrastive_gradient_has_the_originals_small_number_in_its_divisor() -> None:
    a, b = np.array([[3e-4]], np.float32), np.array([[0]], np.float32)
    first, second = run_layer(contrastive("margin: 2", "loss_weight: 3"), [a, b, np.zeros(1)]).backward()[0][:2]
    expected = -3 * 3e-4 * (2 - 3e-4) / (3e-4 + 1e-4)
    assert first.item() == pytest.approx(expected, rel=1e-5)
    assert second.item() == pytest.approx(-expected, rel=1e-5)


def test_equal_vectors_have_no_gradient_instead_of_nan() -> None:
    a = random(10, 4, 3)
    first, second = run_layer(contrastive(), [a, a, np.array([0, 1, 0, 1])]).backward()[0][:2]
    assert not first.any() and not second.any()


def test_the_fraction_of_a_pairs_label_is_cut_off_and_any_other_number_means_similar() -> None:
    bottoms = pairs(11, 6, 4)
    bottoms[2] = np.array([0.9, -0.9, 0, 2, -3, 1.5], np.float32)
    whole = [*bottoms[:2], np.array([0, 0, 0, 1, 1, 1], np.float32)]
    assert_close(run_layer(contrastive(), bottoms).tops[0], run_layer(contrastive(), whole).tops[0], "loss", "exact")


def test_contrastive_loss_computes_only_the_gradients_that_are_wanted() -> None:
    run = run_layer(contrastive(), pairs(12, 6, 4))
    run.backward(propagate_down=[False, True, False])
    assert [not np.isnan(blob.diff).any() for blob in run.bottom] == [False, True, False]


# -- what does not fit together


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        (
            EUCLIDEAN,
            [(6, 5), (5, 6)],
            r"the bottoms must have the same first dimension.* Received 'bottom_0' \(6, 5\) and '",
        ),
        (
            EUCLIDEAN,
            [(), ()],
            r"the same first dimension, one axis at least. Received 'bottom_0' \(\) and 'bottom_1' \(\)",
        ),
        (EUCLIDEAN, [(6, 5), (6, 4)], r"Expected 30 as of 'bottom_0' \(6, 5\), received 'bottom_1' \(6, 4\)"),
        (
            contrastive(),
            [(6, 5), (4, 5), (6,)],
            r"first dimension.* Received 'bottom_0' \(6, 5\) and 'bottom_1' \(4, 5\)",
        ),
        (
            contrastive(),
            [(6, 5), (6, 4), (6,)],
            r"must be \(pairs, channels\), .* Received 'bottom_0' \(6, 5\) and 'bottom_1' \(6, 4\). Reshape",
        ),
        (contrastive(), [(6, 5, 2, 1), (6, 5, 2, 1), (6,)], r"axes of length 1 at most behind .*\(6, 5, 2, 1\) and '"),
        (contrastive(), [(6,), (6,), (6,)], r"must be \(pairs, channels\), .* Received 'bottom_0' \(6,\)"),
        (
            contrastive(),
            [(6, 5), (6, 5), (6, 2)],
            r"one label for each of 6 pairs of 'bottom_0' \(6, 5\). Received labels 'bottom_2' \(6, 2\)",
        ),
        (
            contrastive(),
            [(6, 5), (6, 5), (2, 3)],
            r"one label for each of 6 pairs of .* Received labels 'bottom_2' \(2, 3\). Check",
        ),
    ],
)
def test_bottoms_that_do_not_fit_are_named(text: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        run_layer(text, [np.zeros(shape) for shape in shapes])


def test_a_contrastive_loss_has_no_gradient_for_its_labels() -> None:
    run = run_layer(contrastive(), pairs(13, 6, 4))
    assert [run.layer.allow_force_backward(i) for i in range(3)] == [True, True, False]
    with pytest.raises(NetError, match=r"a loss has no gradient for its labels. Set propagate_down: false"):
        run.backward(propagate_down=[True, True, True])
