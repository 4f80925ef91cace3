"""RNN and LSTM against the original, a float64 loop over timesteps, and difference quotients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_lite.errors import NetError, ShapeError

from .harness import (
    Array,
    Definition,
    LayerRun,
    assert_close,
    check_layer,
    check_reference,
    random,
    reference_names,
    run_layer,
)
from .test_lstm_unit import lstm_step

SETTINGS = {
    "plain": ((4, 3), (5,), 4, None),
    "odd sizes": ((3, 5), (7,), 13, None),
    "one timestep": ((1, 3), (2,), 3, None),
    "one stream": ((5, 1), (3,), 9, None),
    "one unit, one input": ((3, 2), (1,), 1, None),
    "x with more axes": ((3, 2), (2, 3), 5, None),
    "static input": ((4, 3), (5,), 4, (6,)),
    "static input with more axes": ((3, 2), (3,), 17, (2, 3)),
}
FILLERS = 'weight_filler { type: "uniform" min: -0.9 max: 0.9 } bias_filler { type: "uniform" min: -1 max: 1 }'


def recurrent(kind: str, width: int, exposed: bool = False, options: str = "") -> str:
    """Return the layer, with tops named where there are several."""
    states = {"RNN": 1, "LSTM": 2}[kind] * exposed
    tops = " ".join(f'top: "top_{i}"' for i in range(1 + states))
    shown = "expose_hidden: true" if exposed else ""
    return f'type: "{kind}" {tops} recurrent_param {{ num_output: {width} {shown} {options} {FILLERS} }}'


def indicators(steps: int, streams: int, first: float = 0.0) -> Array:
    """Return cont: `first` in the first step, later a new sequence here and there; 0.5 once, to show that it scales."""
    cont = np.ones((steps, streams), np.float32)
    cont[0] = first
    if steps > 2:
        cont[1, 0] = 0
        cont[2, -1] = 0.5
    return cont


def inputs(setting: str, kind: str, exposed: bool) -> list[Array]:
    (steps, streams), shape, width, static = SETTINGS[setting]
    bottoms = [random(1, steps, streams, *shape), indicators(steps, streams, 1.0 if exposed else 0.0)]
    if static:
        bottoms.append(random(2, streams, *static))
    if exposed:
        bottoms += [random(3 + i, 1, streams, width) for i in range({"RNN": 1, "LSTM": 2}[kind])]
    return bottoms


def matrix(blob: Array, axis: int) -> Array:
    return blob.reshape(*blob.shape[:axis], -1)


def define(kind: str, exposed: bool, static: bool, states: list[Array] | None = None) -> Definition:
    """Return the layer as a loop over timesteps that begins with `states`, with zeros by default."""

    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        x, cont = matrix(bottoms[0], 2), bottoms[1]
        count, width = (2 if kind == "LSTM" else 1), params[-1].shape[-1]
        given = bottoms[-count:] if exposed else states or [np.zeros((1, x.shape[1], width))] * count
        h, *cell = (state.reshape(x.shape[1], width) for state in given)
        w_x, b, *rest = params
        shared = matrix(bottoms[2], 1) @ rest.pop(0).T if static else 0
        outputs = []
        for t in range(len(x)):
            now = cont[t][:, None]
            gates = x[t] @ w_x.T + b + shared + (now * h) @ rest[0].T
            if kind == "LSTM":
                cell[0], h = lstm_step(gates, cell[0], now)
                outputs.append(h)
            else:
                h = np.tanh(gates)
                outputs.append(np.tanh(h @ rest[1].T + rest[2]))
        return [np.stack(outputs), *([state[None] for state in (h, *cell)] if exposed else [])]

    return definition


@pytest.mark.parametrize("name", reference_names("RNN", "LSTM"))
def test_agrees_with_the_original(name: str) -> None:
    check_reference(name)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("exposed", [False, True], ids=["hidden", "exposed"])
@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_layer_follows_its_definition_and_gradients_reach_all_inputs_through_time(
    kind: str, exposed: bool, setting: str
) -> None:
    _, _, width, static = SETTINGS[setting]
    bottoms, definition = inputs(setting, kind, exposed), define(kind, exposed, static is not None)
    text = recurrent(kind, width, exposed)
    run = check_layer(text, bottoms, definition, batch_axis=None, tops=[0], step=1e-3)
    diffs, param_diffs = run.backward()
    assert all(diff is not None and diff.any() for i, diff in enumerate(diffs) if i != 1)
    assert all(diff.any() for diff in param_diffs if setting != "one timestep" or exposed or diff.ndim == 1)


@pytest.mark.parametrize(("kind", "exposed"), [("RNN", False), ("LSTM", True)])
def test_another_number_of_streams_and_of_timesteps_is_taken_up(kind: str, exposed: bool) -> None:
    run = run_layer(recurrent(kind, 4, exposed), inputs("static input", kind, exposed))
    params = [param.astype(np.float64) for param in run.params]
    for steps, streams in (4, 1), (2, 5), (4, 3):
        bottoms = [random(5, steps, streams, 5), indicators(steps, streams), random(6, streams, 6)]
        bottoms += [random(7, 1, streams, 4)] * (2 if exposed else 0)
        expected = define(kind, exposed, True)([bottom.astype(np.float64) for bottom in bottoms], params)
        for top, value in zip(run.reshape(*bottoms), expected, strict=True):
            assert_close(top, value, f"{steps} timesteps of {streams} streams")


# -- the state between passes


def forward_once(run: LayerRun, *bottoms: Array) -> list[Array]:
    """Run one forward pass; the harness's own `forward` runs two, and the state would go on in between."""
    for blob, value in zip(run.bottom, bottoms, strict=True):
        blob.data[...] = value
    run.layer.forward(run.bottom, run.top)
    return [blob.data.copy() for blob in run.top]


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_a_pass_goes_on_where_the_last_one_ended(kind: str) -> None:
    # one sequence of six steps, once in one pass and once cut in the middle
    x, cont = random(8, 6, 3, 5), indicators(6, 3)
    whole = run_layer(recurrent(kind, 4), [x, cont])
    part = run_layer(recurrent(kind, 4), [x[:3], cont[:3]], params=whole.params)
    first = forward_once(part, x[:3], cont[:3])[0]
    part.top[0].data[...] = np.nan  # what a layer in place does to the top is not carried over
    second = forward_once(part, x[3:], cont[3:])[0]
    assert_close(np.concatenate([first, second]), whole.tops[0], "both halves")


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_the_gradient_uses_the_state_that_the_pass_began_with_and_stops_there(kind: str) -> None:
    x, cont = random(9, 6, 3, 5), np.ones((6, 3), np.float32)
    cont[0] = 0
    exposed = recurrent(kind, 4, exposed=True)
    zeros = [np.zeros((1, 3, 4), np.float32)] * (1 if kind == "RNN" else 2)
    first = run_layer(exposed, [x[:3], cont[:3], *zeros])
    expected = run_layer(exposed, [x[3:], cont[3:], *first.tops[1:]], params=first.params)
    diff = random(10, 3, 3, 4)
    wanted = expected.backward([diff, *(np.zeros_like(zero) for zero in zeros)])
    carried = run_layer(recurrent(kind, 4), [x[:3], cont[:3]], params=first.params)
    forward_once(carried, x[3:], cont[3:])
    carried.top[0].diff[...] = diff
    for blob in carried.layer.blobs:
        blob.diff[...] = 0
    carried.layer.backward(carried.top, [True, False], carried.bottom)
    assert_close(carried.bottom[0].diff, wanted[0][0], "diff of x")
    for blob, param_diff in zip(carried.layer.blobs, wanted[1], strict=True):
        assert_close(blob.diff, param_diff, "diff of a param")


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_a_layer_that_changes_the_top_in_place_does_not_change_the_gradient(kind: str) -> None:
    run = run_layer(recurrent(kind, 4), inputs("plain", kind, False))
    expected = run.backward()[0][0]
    run.top[0].data[...] = np.nan
    run.layer.backward(run.top, [True, False], run.bottom)
    assert_close(run.bottom[0].diff, expected, "diff of x", "exact")


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_the_first_pass_begins_with_zeros(kind: str) -> None:
    bottoms = inputs("plain", kind, False)
    run = run_layer(recurrent(kind, 4), bottoms)
    fresh = run_layer(recurrent(kind, 4), bottoms, params=run.params)
    for state in (*fresh.layer._first, *fresh.layer._last):
        state.data[...] = 0
    ones = np.ones_like(bottoms[1])
    params = [param.astype(np.float64) for param in run.params]
    assert_close(
        forward_once(fresh, bottoms[0], ones)[0], define(kind, False, False)([bottoms[0], ones], params)[0], ""
    )


def test_the_diffs_of_exposed_last_states_are_not_looked_at() -> None:
    run = run_layer(recurrent("LSTM", 4, True), inputs("plain", "LSTM", True))
    diffs = run.default_top_diffs()
    zeros = [diffs[0], *(np.zeros_like(diff) for diff in diffs[1:])]
    for diff, expected in zip(run.backward(diffs)[0], run.backward(zeros)[0], strict=True):
        if expected is not None:
            assert_close(diff, expected, "diff", "exact")


# -- params


def test_params_have_the_originals_order_and_shapes() -> None:
    lstm = run_layer(recurrent("LSTM", 4), inputs("static input", "LSTM", False))
    assert [param.shape for param in lstm.params] == [(16, 5), (16,), (16, 6), (16, 4)]
    rnn = run_layer(recurrent("RNN", 4), inputs("static input", "RNN", False))
    assert [param.shape for param in rnn.params] == [(4, 5), (4,), (4, 6), (4, 4), (4, 4), (4,)]


def test_the_gates_come_in_the_order_input_forget_output_modulation() -> None:
    # one element, no weights: each gate is its bias; c = 0.5 * tanh(10) is all that an open input gate lets in
    wide = [20.0, -20.0, 0.0, 0.5]
    params = [np.zeros((4, 1)), np.array(wide), np.zeros((4, 1))]
    run = run_layer(recurrent("LSTM", 1), [np.ones((1, 1, 1)), np.zeros((1, 1))], params=params)
    assert run.tops[0] == pytest.approx(0.5 * math.tanh(math.tanh(0.5)), rel=1e-6)


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_no_gradient_is_computed_for_what_wants_none(kind: str) -> None:
    run = run_layer(recurrent(kind, 4), inputs("static input", kind, False))
    run.layer.param_propagate_down = [False] * len(run.layer.blobs)
    run.layer.backward(run.top, [False, False, False], run.bottom)
    run.bottom[0].diff[...] = run.bottom[2].diff[...] = np.nan
    for blob in run.layer.blobs:
        blob.diff[...] = 1
    run.layer.backward(run.top, [False, False, False], run.bottom)
    assert np.isnan(run.bottom[0].diff).all() and np.isnan(run.bottom[2].diff).all()
    assert all((blob.diff == 1).all() for blob in run.layer.blobs)


def test_debug_info_is_accepted() -> None:
    plain, debugged = (
        run_layer(recurrent("RNN", 4, options=options), inputs("plain", "RNN", False)).tops[0]
        for options in ("", "debug_info: true")
    )
    np.testing.assert_array_equal(debugged, plain)


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_nan_goes_on_in_its_own_stream_only(kind: str) -> None:
    bottoms = inputs("odd sizes", kind, True)
    bottoms[0][1, 2, 3] = np.nan
    seen = np.isnan(run_layer(recurrent(kind, 13, True), bottoms).tops[0]).all(axis=2)
    assert seen[1:, 2].all()
    assert not np.delete(seen, 2, axis=1).any()


# -- what does not fit together


def expect(error: type[Exception], message: str, text: str, bottoms: list[Array]) -> None:
    with pytest.raises(error, match=message):
        run_layer(text, bottoms)


def test_outputs_must_be_given() -> None:
    bottoms = inputs("plain", "RNN", False)
    expect(NetError, r"num_output must be positive. Expected recurrent_param", 'type: "RNN"', bottoms)


def test_the_number_of_bottoms_and_tops_depends_on_the_exposed_states() -> None:
    plain, exposed = inputs("plain", "LSTM", False), inputs("plain", "LSTM", True)
    expect(
        NetError,
        r"bottoms. Expected 2 or 3, received 4: 'bottom_0' .*'bottom_3' \([0-9, ]*\)[.]$",
        recurrent("LSTM", 4),
        exposed,
    )
    expect(NetError, r"bottoms. Expected 4 or 5, received 2: .* With expose", recurrent("LSTM", 4, True), plain)
    text = recurrent("LSTM", 4, True).replace('top: "top_2"', "")
    expect(NetError, r"wrong number of tops. Expected 3, received 2. With expose_hidden", text, exposed)


@pytest.mark.parametrize("shape", [(4, 3), (0, 3, 5)])
def test_x_must_have_timesteps_and_streams(shape: tuple[int, ...]) -> None:
    message = rf"x must have axes \(timesteps, streams, ...\) and a timestep. Received 'bottom_0' \({shape[0]}, 3"
    expect(ShapeError, message, recurrent("RNN", 4), [np.zeros(shape), np.zeros(shape[:2])])


def test_indicators_must_be_one_for_each_timestep_and_stream() -> None:
    message = r"Expected \(4, 3\) for x, 'bottom_0' \(4, 3, 5\), received 'bottom_1' \(4, 2\)"
    expect(ShapeError, message, recurrent("LSTM", 4), [np.zeros((4, 3, 5)), np.zeros((4, 2))])


@pytest.mark.parametrize("shape", [(3,), (2, 6)])
def test_the_static_input_must_have_as_many_streams_as_x(shape: tuple[int, ...]) -> None:
    bottoms = [np.zeros((4, 3, 5)), np.zeros((4, 3)), np.zeros(shape)]
    expect(
        ShapeError,
        r"the static input must have axes \(streams, ...\) with the 3 streams of x, 'bottom_0' .* 'bottom_2' ",
        recurrent("LSTM", 4),
        bottoms,
    )


def test_initial_states_must_have_the_shape_of_a_step() -> None:
    bottoms = inputs("plain", "LSTM", True)
    bottoms[3] = np.zeros((1, 3, 5))
    message = r"the initial cell must have shape \(1, 3, 4\). Received 'bottom_3' \(1, 3, 5\) for x, 'bottom_0' \("
    expect(ShapeError, message, recurrent("LSTM", 4, True), bottoms)


def test_another_input_size_does_not_fit_the_weights() -> None:
    run = run_layer(recurrent("RNN", 4), inputs("static input", "RNN", False))
    good = inputs("static input", "RNN", False)
    with pytest.raises(
        ShapeError, match=r"input size of x .* Expected 5 inputs from axis 2 on, received 6 \(bottom 'bottom_0' "
    ):
        run.reshape(random(13, 4, 3, 6), *good[1:])
    with pytest.raises(
        ShapeError, match=r"of the static input .* Expected 6 inputs from axis 1 on, received 7 \(bottom 'bottom_2' "
    ):
        run.reshape(*good[:2], random(14, 3, 7))


def test_params_from_the_prototxt_must_fit() -> None:
    text = recurrent("RNN", 4) + " blobs { shape { dim: 2 } data: 1 data: 2 }"
    message = (
        r"the params do not fit x, 'bottom_0' \(.*, and the options. Expected shapes \[\(4, 5\), .* received \[\(2,\)\]"
    )
    expect(ShapeError, message, text, inputs("plain", "RNN", False))


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_indicators_have_no_gradient(kind: str) -> None:
    run = run_layer(recurrent(kind, 4), inputs("static input", kind, False))
    assert [run.layer.allow_force_backward(i) for i in range(3)] == [True, False, True]
    with pytest.raises(NetError, match=r"the continuation indicators have no gradient. Set propagate_down: false"):
        run.backward(propagate_down=[True, True, True])
