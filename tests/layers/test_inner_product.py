"""The inner product against the original, a float64 definition, difference quotients and docs/inner_product.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_lite import resources
from caffe_lite.errors import NetError, ShapeError
from caffe_lite.proto import caffe_pb2

from .harness import (
    REFERENCE,
    Array,
    Tolerance,
    assert_close,
    check_layer,
    check_reference,
    random,
    reference_names,
    run_layer,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "inner_product.md"
FILLERS = 'weight_filler { type: "gaussian" std: 0.5 } bias_filler { type: "uniform" min: -1 max: 1 }'


def inner_product(options: str, extra: str = "") -> str:
    return f'type: "InnerProduct" {extra} inner_product_param {{ {options} {FILLERS} }}'


def define(axis: int = 1, transpose: bool = False):
    """Return the definition of the layer for `check_layer`: one sum an output."""

    def definition(bottoms: list[Array], params: list[Array]) -> list[Array]:
        x = bottoms[0]
        items = x.reshape(*x.shape[:axis], -1)
        rows = params[0].T if transpose else params[0]
        top = np.stack([(items * row).sum(axis=-1) for row in rows], axis=-1)
        return [top + params[1] if len(params) > 1 else top]

    return definition


@pytest.mark.parametrize("name", reference_names("InnerProduct"))
def test_agrees_with_the_original(name):
    check_reference(name)


@pytest.mark.parametrize(
    ("options", "shape", "definition"),
    [
        ("num_output: 5", (3, 2, 4, 3), define()),
        ("num_output: 37", (5, 19), define()),
        ("num_output: 1", (1, 1), define()),
        ("num_output: 130", (33, 7), define()),
        ("num_output: 7 bias_term: false", (4, 3, 2), define()),
        ("num_output: 7 transpose: true", (4, 3, 2), define(transpose=True)),
        ("num_output: 6 transpose: true bias_term: false axis: 2", (3, 2, 5, 3), define(2, transpose=True)),
        ("num_output: 4 axis: 2", (3, 2, 5, 3), define(2)),
        ("num_output: 4 axis: -1", (3, 2, 5, 3), define(3)),
        ("num_output: 4 axis: -3", (3, 2, 5, 3), define(1)),
    ],
)
def test_forward_agrees_with_the_definition_and_backward_with_difference_quotients(options, shape, definition):
    check_layer(inner_product(options), [random(41, *shape)], definition)


def test_axis_0_makes_one_item_of_the_whole_bottom():
    check_layer(inner_product("num_output: 3 axis: 0"), [random(42, 4, 5)], define(0), batch_axis=None)


def test_the_bias_gradient_is_the_column_sums_for_every_width():
    for columns in (1, 2, 15, 16, 17, 31, 33, 100, 3000):
        run = run_layer(inner_product(f"num_output: {columns}"), [random(43, 21, 2)])
        diff = random(44, 21, columns)
        db = run.backward([diff])[1][1]
        assert_close(db, diff.sum(axis=0, dtype=np.float64), f"{columns} columns")


def test_gradients_that_are_not_wanted_are_left_alone():
    run = run_layer(inner_product("num_output: 3"), [random(45, 2, 4)])
    run.layer.param_propagate_down[:] = [False, True]
    _, (weights, bias) = run.backward(propagate_down=[False])
    assert np.isnan(run.bottom[0].diff).all() and not weights.any() and bias.all()
    run.layer.param_propagate_down[:] = [True, False]
    (bottom,), (weights, bias) = run.backward()
    assert bottom.all() and weights.all() and not bias.any()


def test_params_from_the_prototxt_are_kept():
    blobs = "blobs { shape { dim: 1 dim: 2 } data: 3 data: 5 } blobs { shape { dim: 1 } data: 7 }"
    run = run_layer(inner_product("num_output: 1", blobs), [np.array([[1, 10]], np.float32)])
    assert run.tops[0].tolist() == [[60]]


def test_params_from_the_prototxt_that_do_not_fit_are_an_error():
    blobs = "blobs { shape { dim: 1 dim: 2 } data: 3 data: 5 }"
    message = r"bottom 'bottom_0' \(1, 2\) and the options. Expected shapes \[\(1, 2\), \(1,\)\], received \[\(1, 2\)\]"
    with pytest.raises(ShapeError, match=message):
        run_layer(inner_product("num_output: 1", blobs), [random(46, 1, 2)])


def test_no_outputs_are_an_error():
    with pytest.raises(NetError, match=r"num_output must be positive. Expected inner_product_param \{ num_output: ..."):
        run_layer(inner_product(""), [random(47, 1, 2)])


def test_another_input_size_is_an_error_with_both_shapes():
    run = run_layer(inner_product("num_output: 3"), [random(48, 2, 4, 5)])
    message = r"Expected 20 inputs from axis 1 on, received 24 \(bottom 'bottom_0' \(2, 4, 6\), weights \(3, 20\)\)"
    with pytest.raises(ShapeError, match=message):
        run.reshape(random(48, 2, 4, 6))


# -- docs/inner_product.md


def page_tables() -> dict[str, str]:
    """Return the page's two-column tables: what stands left, and what stands right."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.strip("`"): value for name, value in rows if re.match(r"-?\d", value)}


def page_prototxt() -> str:
    return re.search(r"```\nlayer \{\n(.*?)\n\}\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)


@pytest.fixture(scope="module")
def lenet():
    """The page's layer, run on the recorded inputs: the matrices by the page's names, the run and the message."""
    with np.load(REFERENCE / "inner_product_lenet.npz") as case:
        x, weights, bias, dy = (case[key] for key in ("bottom_0", "param_0", "param_1", "top_diff_0"))
    text = page_prototxt()
    run = run_layer(text, [x], params=[weights, bias])
    (dx,), (dw, db) = run.backward([dy])
    matrices = {"X": x, "W": weights, "b": bias, "Y": run.tops[0], "dY": dy, "dX": dx, "dW": dw, "db": db}
    matrices["X"], matrices["dX"] = x.reshape(16, 800), dx.reshape(16, 800)
    return matrices, run, text_format.Parse(text, caffe_pb2.LayerParameter())


def test_the_elements_that_the_page_quotes_are_what_the_layer_computes(lenet):
    matrices, _, _ = lenet
    elements = {name: value for name, value in page_tables().items() if re.fullmatch(r"\w+\[[\d, ]+\]", name)}
    assert {name.partition("[")[0] for name in elements} == set(matrices)
    for name, value in elements.items():
        matrix, _, index = name.rstrip("]").partition("[")
        actual = matrices[matrix][tuple(int(i) for i in index.split(","))]
        assert_close(actual, float(value), name, Tolerance(2e-6, 5e-6))
    product = matrices["X"][0].astype(np.float64) @ matrices["W"][0]
    assert_close(product, float(page_tables()["sum over k of `X[0, k] W[0, k]"]), "X[0] W[0]", Tolerance(1e-6, 0))


def test_the_quantities_that_the_page_quotes_are_those_of_the_layer(lenet):
    matrices, run, _ = lenet
    items, inputs = matrices["X"].shape
    outputs = matrices["Y"].shape[1]
    params = sum(param.size for param in run.params)
    bound = np.sqrt(3 / inputs)
    filled = run_layer(page_prototxt(), [matrices["X"]]).params[0]
    assert np.abs(filled).max() <= bound and filled.var() == pytest.approx(1 / inputs, rel=0.01)
    product = 2 * items * inputs * outputs / 1e6
    quantities = {
        "inputs K": inputs,
        "outputs": outputs,
        "items": items,
        "weights": matrices["W"].size,
        "params with the bias": params,
        "megabytes of params, in float32": params * 4 / 1e6,
        "xavier's bound for K = 800": bound,
        "the weights' variance": 1 / inputs,
        "launches forward": count_launches(run, "forward"),
        "launches backward": count_launches(run, "backward"),
        "million multiplications and additions forward": product,
        "million multiplications and additions backward": 2 * product + items * outputs / 1e6,
    }
    quoted = {name: float(value) for name, value in page_tables().items() if "[" not in name}
    assert quoted == pytest.approx(quantities, rel=1e-6)


def count_launches(run, direction: str) -> int:
    with run.device.record() as tape:
        if direction == "forward":
            run.layer.forward(run.bottom, run.top)
        else:
            run.layer.backward(run.top, [True], run.bottom)
    return len(tape)


def test_the_pages_table_of_launches_is_what_the_layer_launches(lenet, monkeypatch):
    _, run, _ = lenet
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (forward|backward) \|" + r"([^|]+)\|" * 5 + "$", text, re.MULTILINE)
    quoted = [(row[0], re.search(r"`(\w+)`", row[1]).group(1), *(c.strip() for c in row[2:])) for row in rows]
    seen = []
    monkeypatch.setattr(run.layer, "device", Spy(seen))
    run.layer.forward(run.bottom, run.top)
    launched = [("forward", *launch) for launch in seen]
    seen.clear()
    run.layer.backward(run.top, [True], run.bottom)
    assert launched + [("backward", *launch) for launch in seen] == quoted


class Spy:
    """Stands in for a device and writes down what is launched: a product's sizes, and whether it adds."""

    def __init__(self, seen: list) -> None:
        self.seen = seen

    def gemm(self, transpose_a, transpose_b, m, n, k, alpha, a, b, beta, c, bias=None):
        self.seen.append(("gemm", str(m), str(n), str(k), "yes" if beta else "no"))

    def launch(self, kernel, *rest):
        self.seen.append((kernel, "", "", "", "yes"))


def test_the_pages_example_by_hand_is_what_the_layer_computes():
    lines = re.findall(r"^(d?[XWbY]) += (\[.*\])$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    values = {name: np.array(ast.literal_eval(value), np.float32) for name, value in lines}
    run = run_layer(inner_product("num_output: 2"), [values["X"]], params=[values["W"], values["b"]])
    (dx,), (dw, db) = run.backward([values["dY"]])
    for name, actual in {"Y": run.tops[0], "dX": dx, "dW": dw, "db": db}.items():
        assert_close(actual, values[name], name, "exact")


def test_the_pages_prototxt_is_lenets(lenet):
    message = lenet[2]
    text = resources.path("models/lenet/lenet_train_test.prototxt").read_text(encoding="utf-8")
    net = text_format.Parse(text, caffe_pb2.NetParameter())
    assert message == next(layer for layer in net.layer if layer.name == "ip1")
