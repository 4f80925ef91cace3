"""SPP against the original, a float64 definition and difference quotients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError

from .harness import TEST, Array, assert_close, check_layer, check_reference, distinct, reference_names, run_layer


def spp(options: str) -> str:
    return f'type: "SPP" spp_param {{ {options} }}'


def pyramid(levels: int, kind: str):
    """Return the definition: for each level 2^l x 2^l windows that tile the plane and its padding."""

    def spans(size: int, bins: int) -> list[tuple[int, int, int]]:
        """Return (begin, end, counted) for each window along an axis; counted is what an average divides by."""
        kernel = math.ceil(size / bins)
        pad = math.ceil((kernel * bins - size) / 2)
        begins = [at * kernel - pad for at in range(bins)]
        return [(max(at, 0), min(at + kernel, size), min(at + kernel, size + pad) - at) for at in begins]

    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        x = bottoms[0]
        features = []
        for level in range(levels):
            found = [
                x[:, :, top:below, left:right].max((2, 3))
                if kind == "MAX"
                else x[:, :, top:below, left:right].sum((2, 3)) / (high * wide)
                for top, below, high in spans(x.shape[2], 2**level)
                for left, right, wide in spans(x.shape[3], 2**level)
            ]
            features.append(np.stack(found, 2).reshape(x.shape[0], -1))
        flat = np.concatenate(features, 1)
        return [flat.reshape(*flat.shape, 1, 1) if levels == 1 else flat]

    return definition


@pytest.mark.parametrize("name", reference_names("SPP"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


@pytest.mark.parametrize("kind", ["MAX", "AVE"])
@pytest.mark.parametrize(
    ("levels", "shape"),
    [
        (1, (2, 3, 5, 7)),
        (2, (2, 3, 3, 8)),
        (3, (1, 2, 9, 15)),
        (3, (2, 1, 4, 7)),
        (2, (2, 3, 2, 19)),
        (1, (2, 3, 1, 1)),
    ],
)
def test_forward_agrees_with_the_definition_and_backward_with_difference_quotients(
    levels: int, shape: tuple[int, ...], kind: str
) -> None:
    check_layer(spp(f"pyramid_height: {levels} pool: {kind}"), [distinct(1, *shape)], pyramid(levels, kind))


@pytest.mark.parametrize("levels", [1, 3])
def test_planes_of_any_size_have_the_same_number_of_features(levels: int) -> None:
    run = run_layer(spp(f"pyramid_height: {levels}"), [distinct(1, 2, 3, 8, 8)])
    for size in (9, 12), (8, 8), (4, 15):
        x = distinct(2, 2, 3, *size)
        assert_close(run.reshape(x)[0], pyramid(levels, "MAX")([x.astype(np.float64)], [])[0], f"{size}")
        assert run.tops[0].size == 2 * 3 * (4**levels - 1) // 3
        diff = np.ones(run.top[0].shape, np.float32)
        assert run.backward([diff])[0][0].sum() == diff.size


@pytest.mark.parametrize("levels", [1, 2])
def test_no_gradient_is_computed_for_a_bottom_that_wants_none(levels: int) -> None:
    run = run_layer(spp(f"pyramid_height: {levels}"), [distinct(1, 1, 1, 4, 4)])
    run.backward(propagate_down=[False])
    assert np.isnan(run.bottom[0].diff).all()


@pytest.mark.parametrize(
    ("options", "shape", "error", "message"),
    [
        ("pool: MAX", (2, 3, 4, 4), NetError, "pyramid_height must be given and positive. Received 0"),
        (
            "pyramid_height: 2",
            (2, 3, 4),
            ShapeError,
            r"four axes \(num, channels, height, width\).* 'bottom_0' \(2, 3, 4\)",
        ),
        (
            "pyramid_height: 2",
            (2, 3, 4, 0),
            ShapeError,
            r"planes that are not empty, received 'bottom_0' \(2, 3, 4, 0\)",
        ),
        (
            "pyramid_height: 3",
            (2, 3, 8, 5),
            ShapeError,
            "a plane of 8 x 5 is too small for the 4 x 4 windows of level 2: padding 0 x 2 must be smaller than the "
            r"windows, 2 x 2 \(bottom 'bottom_0' \(2, 3, 8, 5\)\). Use a smaller pyramid_height",
        ),
    ],
)
def test_spp_refuses_what_does_not_fit(
    options: str, shape: tuple[int, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_layer(spp(options), [np.zeros(shape)])


def test_a_stochastic_pyramid_picks_elements_of_its_windows_and_returns_their_gradients() -> None:
    x = np.exp(distinct(5, 2, 3, 8, 4, gap=0.01))
    run = run_layer(spp("pyramid_height: 2 pool: STOCHASTIC"), [x])
    diff = np.arange(1, 31, dtype=np.float32).reshape(2, 15)
    expected = np.zeros_like(x)
    for n in range(2):
        for feature in range(15):
            channel = feature if feature < 3 else (feature - 3) // 4
            row, column = (0, 0) if feature < 3 else divmod((feature - 3) % 4, 2)
            plane = x[n, channel]
            high, wide = (8, 4) if feature < 3 else (4, 2)
            window = plane[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            (place,) = np.argwhere(window == run.tops[0][n, feature])
            expected[n, channel, row * high + place[0], column * wide + place[1]] += diff[n, feature]
    assert_close(run.backward([diff])[0][0], expected, "diff", "exact")
    assert (run.forward(passes=1)[0] != run.forward(passes=2)[0]).any()


def test_a_stochastic_pyramid_has_no_gradient_in_phase_test() -> None:
    run = run_layer(spp("pyramid_height: 2 pool: STOCHASTIC"), [np.ones((1, 1, 4, 4), np.float32)], TEST)
    assert_close(run.tops[0], np.ones((1, 5)), "top")
    with pytest.raises(NetError, match=r"stochastic pooling has no gradient in phase TEST. Use phase TRAIN"):
        run.layer.backward(run.top, [True], run.bottom)
