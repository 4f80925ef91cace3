"""The harness finds what it is there to find: each layer below is wrong in one way."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from caffe_lite.layers.inner_product import InnerProduct

from .harness import (
    REFERENCE,
    TOLERANCES,
    Tolerance,
    assert_close,
    check_gradient,
    check_layer,
    check_reference,
    distinct,
    random,
    run_layer,
)

TEXT = (
    'type: "InnerProduct" inner_product_param { num_output: 4 '
    'weight_filler { type: "gaussian" std: 1 } bias_filler { type: "uniform" min: -1 max: 1 } }'
)

CASES = sorted(path.stem for path in REFERENCE.glob("*.prototxt"))


def define(bottoms, params):
    return [bottoms[0] @ params[0].T + params[1]]


def scaled(factor: float, argument: int):
    """Return a `gemm` of the device whose argument number `argument` (alpha 5, beta 8) is scaled."""

    def wrap(gemm):
        def wrong(*args):
            return gemm(*args[:argument], args[argument] * factor, *args[argument + 1 :])

        return wrong

    return wrap


def break_backward(monkeypatch, wrap) -> None:
    """Make every product of `InnerProduct.backward` the wrong one."""
    backward = InnerProduct.backward

    def wrong(self, *args):
        with monkeypatch.context() as patch:
            patch.setattr(type(self.device), "gemm", wrap(type(self.device).gemm))
            backward(self, *args)

    monkeypatch.setattr(InnerProduct, "backward", wrong)


def test_a_right_layer_passes():
    check_layer(TEXT, [random(1, 3, 5)], define)


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_a_gradient_wrong_by_one_percent_fails(monkeypatch, factor):
    break_backward(monkeypatch, scaled(factor, 6))  # args are (device, transposes, m, n, k, alpha, ...)
    with pytest.raises(AssertionError, match="gradient of bottom 0 along a random direction"):
        check_gradient(TEXT, [random(1, 3, 5)])
    with pytest.raises(AssertionError, match=r"inner_product: diff of bottom 0: .* elements differ"):
        check_reference("inner_product")


def test_a_param_diff_that_is_overwritten_fails(monkeypatch):
    break_backward(monkeypatch, scaled(0.0, 9))
    with pytest.raises(AssertionError, match="diff of param 0, which must be added to"):
        run_layer(TEXT, [random(1, 3, 5)]).backward()


def test_a_top_that_is_not_written_fails(monkeypatch):
    monkeypatch.setattr(InnerProduct, "forward", lambda self, bottom, top: None)
    with pytest.raises(AssertionError, match="top 0: 12 of 12 elements differ"):
        check_layer(TEXT, [random(1, 3, 5)], define)


def test_a_layer_that_computes_outside_its_launches_fails_on_the_tape(monkeypatch):
    def forward(self, bottom, top):
        top[0].data[...] = len(calls)
        calls.append(1)

    calls: list[int] = []
    monkeypatch.setattr(InnerProduct, "forward", forward)
    with pytest.raises(AssertionError, match="top 0 replayed from a tape"):
        run_layer(TEXT, [random(1, 3, 5)])


def test_a_failure_names_the_worst_element_its_errors_and_the_tolerance():
    actual, expected = np.ones((2, 3)), np.ones((2, 3))
    actual[1, 2], actual[0, 1] = 1.5, 1.25
    message = (
        "blob: 2 of 6 elements differ. Worst at (1, 2): 1.5, expected 1. "
        "Absolute error 0.5, relative 0.5, tolerance 0.11."
    )
    with pytest.raises(AssertionError, match=re.escape(message)):
        assert_close(actual, expected, "blob", Tolerance(0.01, 0.1))


def test_nan_and_infinity_are_only_equal_to_themselves():
    special = np.array([np.nan, np.inf, -np.inf])
    assert_close(special, special, "special")
    for i, other in enumerate([1.0, -np.inf, np.nan]):
        wrong = special.copy()
        wrong[i] = other
        with pytest.raises(AssertionError, match="1 of 3 elements differ"):
            assert_close(wrong, special, "special")


def test_a_shape_that_differs_fails():
    with pytest.raises(AssertionError, match=re.escape("blob: shape (2, 1), expected (2,)")):
        assert_close(np.ones((2, 1)), np.ones(2), "blob")


def test_the_tolerance_against_the_original_is_the_recordings():
    assert TOLERANCES["reference"].of(np.array([-3.0, 2.0, np.nan])) == pytest.approx(1e-5 + 3e-4)


def test_distinct_values_keep_apart_from_each_other_and_from_zero():
    values = np.sort(distinct(1, 3, 7, gap=0.5).ravel())
    assert np.diff(values).min() == pytest.approx(0.5) and np.abs(values).min() == pytest.approx(0.25)


def reference_tests() -> Iterator[str]:
    """Yield the name of each recorded case that a test of this folder hands to `check_reference`."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"{__package__}.{path.stem}")
        for test in vars(module).values():
            code = getattr(test, "__code__", None)
            if path.name == Path(__file__).name or code is None or "check_reference" not in code.co_names:
                continue
            marks = [mark for mark in getattr(test, "pytestmark", []) if mark.args[:1] == ("name",)]
            yield from marks[0].args[1] if marks else {str(one) for one in code.co_consts} & set(CASES)


def test_every_recorded_case_is_checked_by_exactly_one_test():
    assert len(CASES) == 131
    assert sorted(reference_tests()) == CASES
    assert sorted(path.stem for path in REFERENCE.glob("*.npz")) == CASES
