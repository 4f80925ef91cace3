"""Split and Silence."""

from __future__ import annotations

import numpy as np
import pytest

from .harness import assert_close, check_layer, check_reference, random, reference_names, run_layer


def split(tops: int) -> str:
    return 'type: "Split" ' + " ".join(f'top: "t{i}"' for i in range(tops))


@pytest.mark.parametrize("name", reference_names("Split", "Silence"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


@pytest.mark.parametrize("tops", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3,), ()])
def test_split_gives_every_top_the_bottom(shape: tuple[int, ...], tops: int) -> None:
    check_layer(
        split(tops), [random(1, *shape)], lambda bottoms, params: bottoms * tops, batch_axis=0 if shape else None
    )


def test_split_shares_memory_even_after_the_bottom_has_grown() -> None:
    run = run_layer(split(2), [random(2, 3, 4)])
    run.reshape(random(3, 30, 40))
    run.bottom[0].data[...] = 5
    for top in run.top:
        assert (top.data == 5).all()


@pytest.mark.parametrize("tops", [1, 2, 4])
def test_split_adds_the_gradients_of_all_tops(tops: int) -> None:
    diffs = [random(i, 3, 5) for i in range(tops)]
    run = run_layer(split(tops), [random(9, 3, 5)])
    assert_close(run.backward(diffs)[0][0], np.sum(diffs, axis=0, dtype=np.float64), "diff")


def test_split_counts_a_top_that_nobody_propagates_to_as_zero() -> None:
    run = run_layer(split(3), [random(9, 3, 5)])
    run.top[1].diff[...] = 2
    run.layer.backward(run.top, [True], run.bottom)
    assert (run.bottom[0].diff == 2).all()


@pytest.mark.parametrize("text", [split(2), 'type: "Silence"'])
def test_no_bottom_diff_is_written_unless_it_is_asked_for(text: str) -> None:
    run = run_layer(text, [random(1, 4)])
    run.bottom[0].diff[...] = 7
    run.layer.backward(run.top, [False], run.bottom)
    assert (run.bottom[0].diff == 7).all()


def test_silence_has_no_top_and_a_zero_gradient() -> None:
    bottoms = [random(1, 2, 3), random(2, 5)]
    run = run_layer('type: "Silence"', bottoms)
    assert run.tops == []
    diffs = run.backward([], [True, False])[0]
    assert_close(diffs[0], np.zeros((2, 3)), "diff", "exact")
    assert diffs[1] is None
    run.reshape(random(3, 4, 4), random(4, 1))
    assert_close(run.backward([])[0][0], np.zeros((4, 4)), "diff", "exact")
