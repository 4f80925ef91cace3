"""Embed against the original, a float64 definition and difference quotients of its params."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_lite.errors import DataError, NetError, ShapeError
from caffe_lite.layers.embed import CHUNKS
from caffe_lite.layers.loss import CHUNK

from .harness import Array, assert_close, check_layer, check_reference, labels, random, reference_names, run_layer

FILLERS = 'weight_filler { type: "gaussian" std: 1 } bias_filler { type: "uniform" min: -1 max: 1 }'


def embed(rows: int, columns: int, options: str = "", extra: str = "") -> str:
    return f'type: "Embed" {extra} embed_param {{ input_dim: {rows} num_output: {columns} {options} {FILLERS} }}'


def define(bottoms: list[Array], params: list[Array]) -> list[Array]:
    """Look the rows up as a product with one-hot vectors."""
    one_hot = bottoms[0][..., None] == np.arange(len(params[0]))
    return [one_hot.astype(np.float64) @ params[0] + (params[1] if len(params) > 1 else 0)]


@pytest.mark.parametrize("name", reference_names("Embed"))
def test_agrees_with_the_original(name):
    check_reference(name)


@pytest.mark.parametrize("options", ["", "bias_term: false"])
@pytest.mark.parametrize(
    ("rows", "columns", "shape"),
    [
        (11, 5, (4, 3)),
        (6, 8, (7,)),
        (3, 17, (2, 3, 1, 5)),
        (1, 1, (1,)),
        (1000, 3, (2, 4)),  # most rows are never looked up
        (5, 2, (CHUNK + 7, 3)),  # several chunks of indices, long lists
        (2, 3, ()),
    ],
)
def test_agrees_with_the_definition_and_difference_quotients(rows, columns, shape, options):
    check_layer(embed(rows, columns, options), [labels(1, rows, *shape)], define, batch_axis=0 if shape else None)


def test_rows_looked_up_by_hand():
    run = run_layer(embed(3, 2), [np.array([2, 0, 2])], params=[np.array([[1, 2], [3, 4], [5, 6]]), np.array([10, 20])])
    assert run.tops[0].tolist() == [[15, 26], [11, 22], [15, 26]]
    weights_diff, bias_diff = run.backward([np.array([[1, 2], [3, 4], [5, 6]], np.float32)])[1]
    assert weights_diff.tolist() == [[3, 4], [0, 0], [6, 8]]
    assert bias_diff.tolist() == [9, 12]


@pytest.mark.parametrize("rows", [4, 3000])
def test_the_gradient_adds_an_indexs_rows_in_their_order(rows):
    index, diff = labels(2, rows, 40 * CHUNKS + 1), random(3, 40 * CHUNKS + 1, 3)
    expected = np.zeros((rows, 3), np.float32)
    for k, row in zip(index.astype(int), diff, strict=True):
        expected[k] += row
    run = run_layer(embed(rows, 3), [index])
    assert run.layer.chunks > 1
    assert_close(run.backward([diff])[1][0], expected, "weights' diff", "exact")


def test_the_fraction_of_an_index_is_cut_off():
    run = run_layer(embed(3, 4), [np.array([0.9, -0.9, 2.5])])
    whole = run_layer(embed(3, 4), [np.array([0, 0, 2])], params=run.params)
    assert_close(run.tops[0], whole.tops[0], "top", "exact")


@pytest.mark.parametrize("bad", [5, -1, np.nan, np.inf, -np.inf, 1e30])
def test_an_index_that_is_no_row_is_an_error_and_touches_nothing(bad):
    index = labels(4, 5, 3, 4)
    run = run_layer(embed(5, 2), [index])
    index[1, 2] = bad
    with pytest.raises(DataError, match=r"index \S+ at \(1, 2\) is no row of the weights. Expected 0 to 4. Check"):
        run.forward(index)
    run.layer.forward(run.bottom, run.top)  # what has run nonetheless wrote nothing but zeros and the bias
    assert_close(run.top[0].data[1, 2], run.params[1], "top", "exact")
    diff = np.ones(run.top[0].shape, np.float32)
    run.top[0].diff[...] = diff
    run.layer.backward(run.top, [False], run.bottom)
    assert run.layer.blobs[0].diff.sum() == diff.sum() - 2


def test_the_layer_stays_usable_after_an_error():
    run = run_layer(embed(5, 2), [labels(5, 5, 3)])
    before = run.tops[0]
    with pytest.raises(DataError, match=r"index 9 at \(0,\)"):
        run.forward(np.array([9, 0, 1]))
    assert_close(run.forward(labels(5, 5, 3))[0], before, "top", "exact")


def test_another_number_of_indices_keeps_the_weights():
    run = run_layer(embed(7, 3), [labels(6, 7, 2, 3)])
    for shape in (900, 2), (1,), (5, 5, 5):
        index = labels(7, 7, *shape)
        assert_close(run.reshape(index)[0], define([index], run.params)[0], f"top for {shape}")
        run.backward()


def test_gradients_that_are_not_wanted_are_left_alone():
    run = run_layer(embed(7, 3), [labels(8, 7, 6)])
    for wanted in ([True, False], [False, True]):
        run.layer.param_propagate_down[:] = wanted
        assert [diff.any() for diff in run.backward()[1]] == wanted


def test_an_index_has_no_gradient():
    run = run_layer(embed(7, 3), [labels(9, 7, 6)])
    assert not run.layer.allow_force_backward(0)
    with pytest.raises(NetError, match=r"an index has no gradient. Set propagate_down: false"):
        run.backward(propagate_down=[True])


@pytest.mark.parametrize(("rows", "columns", "name"), [(0, 3, "input_dim"), (3, 0, "num_output")])
def test_a_matrix_without_rows_or_columns_is_an_error(rows, columns, name):
    with pytest.raises(NetError, match=f"{name} must be positive. Expected embed_param {{ {name}: ... }}, received 0"):
        run_layer(embed(rows, columns), [labels(10, 3, 2)])


def test_params_from_the_prototxt_that_do_not_fit_are_an_error():
    blobs = "blobs { shape { dim: 1 dim: 2 } data: 3 data: 5 }"
    message = r"bottom 'bottom_0' \(.*\) and the options. Expected shapes \[\(3, 2\), \(2,\)\], received \[\(1, 2\)\]"
    with pytest.raises(ShapeError, match=message):
        run_layer(embed(3, 2, extra=blobs), [labels(11, 3, 2)])
