"""Split, Silence, Flatten, Reshape and Parameter."""

from __future__ import annotations

import numpy as np
import pytest
from nets import build

from caffe_lite.errors import NetError, ShapeError

from .harness import assert_close, check_layer, check_reference, random, reference_names, run_layer


def split(tops: int) -> str:
    return 'type: "Split" ' + " ".join(f'top: "t{i}"' for i in range(tops))


@pytest.mark.parametrize("name", reference_names("Split", "Silence", "Flatten", "Reshape"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


@pytest.mark.parametrize("tops", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 13), (3,), ()])
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


def flatten(options: str = "") -> str:
    return f'type: "Flatten" flatten_param {{ {options} }}'


def reshape(options: str) -> str:
    return f'type: "Reshape" reshape_param {{ {options} }}'


def shape(*dims: int) -> str:
    return f"shape {{ {' '.join(f'dim: {dim}' for dim in dims)} }}"


# text, bottom's shape, top's shape
VIEWS = {
    "flatten": (flatten(), (2, 3, 4, 5), (2, 60)),
    "flatten middle": (flatten("axis: 1 end_axis: 2"), (2, 3, 4, 5), (2, 12, 5)),
    "flatten from the end": (flatten("axis: -3 end_axis: -2"), (2, 3, 4, 5), (2, 12, 5)),
    "flatten all": (flatten("axis: 0"), (1, 7, 3), (21,)),
    "flatten one": (flatten("axis: 1 end_axis: 1"), (2, 3, 5), (2, 3, 5)),
    "flatten none": (flatten("axis: 2 end_axis: 1"), (2, 3, 5), (2, 3, 1, 5)),
    "reshape": (reshape(shape(4, 15)), (2, 3, 10), (4, 15)),
    "reshape 0 and -1": (reshape(shape(0, -1, 2)), (2, 3, 4, 5), (2, 30, 2)),
    "reshape axis": (reshape("axis: 1 " + shape(-1)), (2, 3, 4), (2, 12)),
    "reshape axis and num_axes": (reshape("axis: 1 num_axes: 2 " + shape(2, -1)), (2, 3, 4, 5), (2, 2, 6, 5)),
    "reshape inserts": (reshape("axis: 1 num_axes: 0 " + shape(1)), (2, 3), (2, 1, 3)),
    "reshape appends": (reshape("axis: -1 " + shape(1, 1)), (2, 3), (2, 3, 1, 1)),
    "reshape negative axis": (reshape("axis: -2 num_axes: 1 " + shape(2, 2)), (3, 4), (3, 2, 2)),
    "reshape 0 is relative to axis": (reshape("axis: 1 " + shape(-1, 0)), (2, 6, 4), (2, 6, 4)),
    "reshape 0 behind what is replaced": (reshape("axis: 0 num_axes: 1 " + shape(2, 0)), (6, 3), (2, 3, 3)),
    "reshape to a number": (reshape("shape {}"), (1, 1), ()),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_the_bottoms_elements_in_another_shape(view: str) -> None:
    text, given, expected = VIEWS[view]
    check_layer(text, [random(1, *given)], lambda bottoms, params: [bottoms[0].reshape(expected)], batch_axis=None)


@pytest.mark.parametrize("text", [flatten(), reshape(shape(0, -1))])
def test_a_view_shares_data_and_diff_even_after_the_bottom_has_grown(text: str) -> None:
    run = run_layer(text, [random(2, 3, 4, 1)])
    for size in (30, 40, 7), (1, 5, 3):
        run.reshape(random(3, *size))
        assert run.top[0].shape == (size[0], size[1] * size[2])
        run.bottom[0].data[...] = 5
        run.top[0].diff[...] = 6
        assert (run.top[0].data == 5).all()
        assert (run.bottom[0].diff == 6).all()


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (flatten(), (3,), r"axis 1 does not exist. Expected -1 to 0"),
        (
            flatten("axis: 3 end_axis: 1"),
            (2, 3, 4, 5),
            r"end_axis must not lie before axis. Received axis 3, end_axis 1 for bottom 'bottom_0' \(",
        ),
        (
            reshape(shape(4, 5)),
            (2, 3),
            r"as many elements as the bottom. Expected 6 as of 'bottom_0' \(2, 3\), received 20 \(4, 5\)",
        ),
        (
            reshape(shape(-1, 4)),
            (2, 3),
            r"no length in place of -1 makes 6 elements: the other lengths make 4. Received bottom 'bottom_0' \(",
        ),
        (
            reshape(shape(0, 0, 0)),
            (2, 3),
            r"no axis 2 whose length a 0 could copy. Received bottom 'bottom_0' \(2, 3\)",
        ),
        (
            reshape("axis: 3 " + shape(1)),
            (2, 3),
            r"there are no axes from axis 3 on. Received bottom 'bottom_0' \(2, 3\)",
        ),
        (reshape("axis: -4 " + shape(1)), (2, 3), r"there are no axes from axis -4 on"),
        (reshape("axis: 1 num_axes: 2 " + shape(1)), (2, 3), r"there are no 2 axes from axis 1 on"),
    ],
)
def test_a_view_refuses_a_bottom_that_does_not_fit(text: str, given: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        run_layer(text, [random(1, *given)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (shape(-1, 2, -1), r"shape takes lengths, 0, and -1 at most once. Received \[-1, 2, -1\]"),
        (shape(-2, 3), r"shape takes lengths, 0, and -1 at most once. Received \[-2, 3\]"),
        ("num_axes: -2 " + shape(1), r"num_axes must be -1 \(all\) or a number. Received -2"),
    ],
)
def test_reshape_refuses_a_shape_that_is_none(options: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        run_layer(reshape(options), [random(1, 2, 3)])


PARAMETER = 'type: "Parameter" parameter_param { shape { dim: 3 dim: 5 } }'


def test_parameter_agrees_with_the_original() -> None:
    check_reference("parameter")


@pytest.mark.parametrize("size", [(3, 5), (1, 13), (1,), ()])
def test_parameter_gives_its_param_and_adds_to_its_diff(size: tuple[int, ...]) -> None:
    text = f'type: "Parameter" parameter_param {{ {shape(*size)} }}'
    check_layer(text, [], lambda bottoms, params: params, params=[random(1, *size)], batch_axis=None)


def test_parameter_starts_at_zero() -> None:
    assert_close(run_layer(PARAMETER, []).tops[0], np.zeros((3, 5)), "top", "exact")


def test_parameter_leaves_a_diff_alone_that_is_not_wanted() -> None:
    run = run_layer(PARAMETER, [])
    run.layer.param_propagate_down = [False]
    run.layer.backward(run.top, [], [])
    assert not run.layer.blobs[0].diff.any()


def test_parameter_refuses_a_param_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"does not fit its shape. Expected \(3, 5\) for top 'top_0', received \(2,\)"):
        run_layer(PARAMETER + " blobs { shape { dim: 2 } data: 1 data: 2 }", [])


NET = """
force_backward: true
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 dim: 5 dim: 1 } } }
layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 3 dim: 5 } } }
layer { name: "flat" type: "Flatten" bottom: "x" top: "flat" }
layer { name: "back" type: "Reshape" bottom: "x" top: "back" reshape_param { shape { dim: 3 dim: -1 } } }
layer { name: "product" type: "Eltwise" bottom: "flat" bottom: "p" bottom: "back" top: "product"
        eltwise_param { operation: PROD } }
layer { name: "sum" type: "Reduction" bottom: "product" top: "sum" loss_weight: 1 }
"""


def test_a_net_learns_a_parameter_and_passes_gradients_through_views() -> None:
    net, x, p = build(NET), random(1, 3, 5, 1), random(2, 3, 5)
    net.blobs["x"].data[...], net.params["p"][0].data[...] = x, p
    for passes in (1, 2):  # the param's diff adds up
        assert_close(net.forward()["sum"], np.sum(p.astype(np.float64) * x[..., 0] ** 2), "sum")
        net.backward()
        assert_close(net.params["p"][0].diff, passes * x[..., 0].astype(np.float64) ** 2, "diff of the param")
        assert_close(net.blobs["x"].diff[..., 0], 2.0 * p * x[..., 0], "diff of the bottom")
