"""Concat, Slice, Tile and Crop."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError
from caffe_lite.layers.concat import FEWEST, PIECE, in_pieces

from .harness import Array, assert_close, check_layer, check_reference, random, reference_names, run_layer


def concat(options: str = "") -> str:
    return f'type: "Concat" concat_param {{ {options} }}'


def slices(tops: int, options: str = "") -> str:
    return f'type: "Slice" slice_param {{ {options} }} ' + " ".join(f'top: "t{i}"' for i in range(tops))


def tile(options: str) -> str:
    return f'type: "Tile" tile_param {{ {options} }}'


def crop(options: str = "") -> str:
    return f'type: "Crop" crop_param {{ {options} }}'


@pytest.mark.parametrize("name", reference_names("Concat", "Slice", "Tile", "Crop"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


@pytest.mark.parametrize("length", [0, 1, 7, PIECE, PIECE + 1, 3 * PIECE, 64 * 56 * 56, 1000003, 12582917])
def test_pieces_make_up_the_row_and_are_of_a_useful_length(length: int) -> None:
    pieces, piece = in_pieces(length)
    assert pieces * piece == length
    assert pieces == 1 or FEWEST <= piece <= PIECE


# -- Concat

# options, axis, shapes
CONCATS = {
    "channels": ("", 1, [(2, 3, 4, 5), (2, 1, 4, 5), (2, 4, 4, 5)]),
    "items": ("axis: 0", 0, [(2, 3), (5, 3)]),
    "last axis": ("axis: -1", 2, [(2, 3, 4), (2, 3, 1), (2, 3, 19)]),
    "legacy": ("concat_dim: 2", 2, [(2, 3, 4), (2, 3, 3)]),
    "numbers": ("axis: 0", 0, [(1,), (1,)]),
    "single": ("", 1, [(2, 3, 5)]),
    "one of them empty": ("", 1, [(2, 3), (2, 0), (2, 1)]),
    "long rows": ("", 1, [(2, 3, PIECE), (2, 1, PIECE), (2, 1, PIECE)]),
    "long rows of odd lengths": ("axis: 0", 0, [(2, PIECE + 1), (1, PIECE + 1)]),
}


@pytest.mark.parametrize("case", CONCATS)
def test_concat_puts_its_bottoms_side_by_side(case: str) -> None:
    options, axis, shapes = CONCATS[case]
    bottoms = [random(i, *shape) for i, shape in enumerate(shapes)]
    check_layer(concat(options), bottoms, lambda bottoms, params: [np.concatenate(bottoms, axis)])
    run = run_layer(concat(options), bottoms)
    diff = random(9, *run.top[0].shape)
    parts = np.split(diff, np.cumsum([shape[axis] for shape in shapes])[:-1], axis)
    for i, (actual, expected) in enumerate(zip(run.backward([diff])[0], parts, strict=True)):
        assert_close(actual, expected, f"diff of bottom {i}", "exact")


def test_concat_leaves_a_diff_alone_that_is_not_wanted() -> None:
    run = run_layer(concat(), [random(1, 2, 3), random(2, 2, 4)])
    diffs = run.backward(propagate_down=[False, True])[0]
    assert diffs[0] is None and np.isnan(run.bottom[0].diff).all() and np.isfinite(diffs[1]).all()


@pytest.mark.parametrize("text", [concat(), slices(1)])
def test_a_single_part_shares_memory(text: str) -> None:
    run = run_layer(text, [random(1, 2, 3)])
    run.reshape(random(2, 20, 30))
    run.bottom[0].data[...], run.top[0].diff[...] = 5, 6
    assert (run.top[0].data == 5).all()
    assert (run.bottom[0].diff == 6).all()


@pytest.mark.parametrize(
    ("options", "shapes", "message"),
    [
        (
            "",
            [(2, 3, 4), (2, 5, 3)],
            r"except along axis 1. Expected \(2, any, 4\) as of 'bottom_0' \(2, 3, 4\), received 'bottom_1' \(2, 5",
        ),
        (
            "axis: -1",
            [(2, 3), (2, 3, 1)],
            r"except along axis 1. Expected \(2, any\) as of .*, received 'bottom_1' \(2, 3, 1\). Use another axis",
        ),
        ("axis: 2", [(2, 3), (2, 3)], "axis 2 does not exist. Expected -2 to 1"),
        ("concat_dim: 4294967295", [(2, 3), (2, 3)], "axis 4294967295 does not exist"),
    ],
)
def test_concat_refuses_bottoms_that_do_not_fit(options: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        run_layer(concat(options), [random(1, *shape) for shape in shapes])


@pytest.mark.parametrize(
    ("text", "legacy"),
    [(concat("axis: 1 concat_dim: 1"), "concat_dim"), (slices(2, "axis: 1 slice_dim: 1"), "slice_dim")],
)
def test_an_axis_given_twice_is_an_error(text: str, legacy: str) -> None:
    with pytest.raises(NetError, match=f"expected axis or {legacy}, the older name. Received both"):
        run_layer(text, [random(1, 2, 4)])


# -- Slice

# options, axis, bottom's shape, where to cut
SLICES = {
    "points": ("slice_point: 1 slice_point: 4", 1, (2, 6, 3, 5), [1, 4]),
    "equal": ("axis: 2", 2, (2, 3, 8, 1), [2, 4, 6]),
    "items": ("axis: 0 slice_point: 1", 0, (3, 5), [1]),
    "last axis": ("axis: -1 slice_point: 2 slice_point: 19", 1, (3, 20), [2, 19]),
    "legacy": ("slice_dim: 1 slice_point: 3", 1, (2, 5), [3]),
    "an empty end": ("slice_point: 2 slice_point: 5", 1, (2, 5), [2, 5]),
    "single": ("", 1, (2, 5), []),
    "long rows": ("slice_point: 3", 1, (2, 4, PIECE), [3]),
}


@pytest.mark.parametrize("case", SLICES)
def test_slice_cuts_its_bottom(case: str) -> None:
    options, axis, shape, points = SLICES[case]
    text = slices(len(points) + 1, options)
    batch_axis = 0 if axis else None
    x = random(1, *shape)
    check_layer(text, [x], lambda bottoms, params: np.split(bottoms[0], points, axis), batch_axis=batch_axis)
    diffs = np.split(random(2, *shape), points, axis)
    assert_close(run_layer(text, [x]).backward(diffs)[0][0], np.concatenate(diffs, axis), "diff", "exact")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (slices(3, "slice_point: 2"), NetError, "once less than there are tops, or not at all. Expected 2, received 1"),
        (slices(2), ShapeError, "2 tops cannot have equal parts of 5"),
        (
            slices(3, "slice_point: 3 slice_point: 3"),
            ShapeError,
            r"at most the length of axis 1, 5. Received \[3, 3\] for bottom 'bottom_0' \(",
        ),
        (slices(3, "slice_point: 3 slice_point: 1"), ShapeError, r"points must rise from above 0 .* Received \[3, 1\]"),
        (slices(2, "slice_point: 0"), ShapeError, r"points must rise from above 0 .* Received \[0\]"),
        (slices(2, "slice_point: 6"), ShapeError, r"at most the length of axis 1, 5. Received \[6\]"),
        (slices(2, "slice_dim: 2"), ShapeError, "axis 2 does not exist"),
    ],
)
def test_slice_refuses_what_does_not_fit(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_layer(text, [random(1, 2, 5)])


# -- Tile

# options, axis, tiles, bottom's shape
TILES = {
    "middle": ("axis: 1 tiles: 3", 1, 3, (2, 3, 5)),
    "default axis": ("tiles: 4", 1, 4, (2, 3)),
    "items": ("axis: 0 tiles: 2", 0, 2, (3, 7)),
    "last axis": ("axis: -1 tiles: 5", 2, 5, (2, 3, 7)),
    "single elements": ("axis: 2 tiles: 19", 2, 19, (2, 3, 1)),
    "one tile": ("tiles: 1", 1, 1, (2, 3)),
    "long rows": ("tiles: 3", 1, 3, (2, 3, PIECE)),
}


@pytest.mark.parametrize("case", TILES)
def test_tile_repeats_its_bottom_and_adds_the_gradients(case: str) -> None:
    options, axis, tiles, shape = TILES[case]

    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        return [np.concatenate([bottoms[0]] * tiles, axis)]

    check_layer(tile(options), [random(1, *shape)], definition)
    run = run_layer(tile(options), [random(1, *shape)])
    diff = random(2, *run.top[0].shape)
    expected = np.sum(np.split(diff.astype(np.float64), tiles, axis), axis=0)
    assert_close(run.backward([diff])[0][0], expected, "diff")


def test_tile_refuses_no_tiles() -> None:
    for options in ("", "tiles: 0", "tiles: -2"):
        with pytest.raises(NetError, match=r"tiles must be given and positive. Received"):
            run_layer(tile(options), [random(1, 2, 3)])


def test_tile_refuses_an_axis_that_does_not_exist() -> None:
    with pytest.raises(ShapeError, match="axis 2 does not exist"):
        run_layer(tile("tiles: 2 axis: 2"), [random(1, 2, 3)])


# -- Crop

# options, bottom's shape, size, offsets
CROPS = {
    "planes": ("offset: 1 offset: 2", (2, 3, 7, 8), (2, 3, 4, 5), (0, 0, 1, 2)),
    "one offset": ("axis: 1 offset: 2", (2, 5, 7, 8), (2, 3, 4, 5), (0, 2, 2, 2)),
    "no offset": ("", (2, 3, 7, 8), (2, 3, 7, 5), (0, 0, 0, 0)),
    "all axes": ("axis: 0 offset: 1", (3, 4, 5), (2, 3, 1), (1, 1, 1)),
    "negative axis": ("axis: -1 offset: 3", (2, 3, 9), (2, 3, 5), (0, 0, 3)),
    "behind whole axes": ("axis: 1 offset: 1 offset: 0 offset: 0", (2, 4, 3, 5), (2, 2, 3, 5), (0, 1, 0, 0)),
    "nothing": ("", (2, 3, 4, 5), (2, 3, 4, 5), (0, 0, 0, 0)),
    "two axes": ("axis: 1 offset: 4", (3, 19), (3, 11), (0, 4)),
    "one axis": ("axis: 0 offset: 2", (5,), (3,), (2,)),
    "five axes": ("axis: 2 offset: 1 offset: 2 offset: 0", (2, 1, 4, 5, 6), (2, 1, 3, 2, 6), (0, 0, 1, 2, 0)),
    "to one": ("axis: 2 offset: 2", (2, 3, 3, 3), (2, 3, 1, 1), (0, 0, 2, 2)),
    "long planes": ("axis: 1 offset: 1 offset: 0", (2, 3, PIECE), (2, 1, PIECE), (0, 1, 0)),
}


@pytest.mark.parametrize("case", CROPS)
def test_crop_cuts_out_a_block_and_pads_the_gradient_with_zeros(case: str) -> None:
    options, shape, size, offsets = CROPS[case]
    block = tuple(slice(start, start + length) for start, length in zip(offsets, size, strict=True))
    bottoms = [random(1, *shape), random(2, *size)]

    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        return [bottoms[0][(slice(None), *block[1:])]]

    batch_axis = 0 if offsets[0] == 0 and shape[0] == size[0] else None
    if batch_axis == 0:
        check_layer(crop(options), bottoms, definition)
    run = run_layer(crop(options), bottoms)
    assert_close(run.tops[0], bottoms[0][block], "top", "exact")
    diff, expected = random(3, *size), np.zeros(shape)
    expected[block] = diff
    actual = run.backward([diff])[0]
    assert_close(actual[0], expected, "diff", "exact")
    assert_close(actual[1], np.zeros(size), "diff of the second bottom", "exact")


def test_crop_takes_no_interest_in_the_sizes_before_its_axis() -> None:
    x = random(1, 2, 3, 6, 7)
    assert_close(run_layer(crop("offset: 1"), [x, random(2, 5, 1, 4, 2, 9)]).tops[0], x[:, :, 1:5, 1:3], "top", "exact")


def test_crop_leaves_diffs_alone_that_are_not_wanted() -> None:
    run = run_layer(crop(), [random(1, 2, 3, 6, 7), random(2, 2, 3, 4, 4)])
    run.backward(propagate_down=[False, False])
    assert all(np.isnan(blob.diff).all() for blob in run.bottom)


@pytest.mark.parametrize(
    ("options", "shapes", "message"),
    [
        (
            "offset: 1 offset: 4",
            [(2, 3, 7, 8), (2, 3, 4, 5)],
            r"inside axis 3: offset 4, size 5, but length 8. Received .*'bottom_1' \(2, 3, 4, 5\). Use a smaller",
        ),
        ("", [(2, 3, 7, 8), (2, 3, 8, 5)], r"inside axis 2: offset 0, size 8, but length 7"),
        (
            "axis: 1 offset: 1 offset: 2",
            [(2, 3, 4, 5)] * 2,
            r"once for each of the 3 axes of 'bottom_0' .* from axis 1 on. Received 2",
        ),
        (
            "",
            [(2, 3, 4, 5), (2, 3, 4)],
            r"as the first. Received 'bottom_0' \(2, 3, 4, 5\) and 'bottom_1' \(2, 3, 4\). Use",
        ),
        ("", [(2, 3), (2, 3)], "axis 2 does not exist"),
    ],
)
def test_crop_refuses_what_does_not_fit(options: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        run_layer(crop(options), [random(1, *shape) for shape in shapes])
