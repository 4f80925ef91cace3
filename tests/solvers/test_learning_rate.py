"""The learning rate policies against their formulas in float64, and their complaints."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_lite.errors import SolverError
from caffe_lite.proto import caffe_pb2
from caffe_lite.solvers.learning_rate import POLICIES, LearningRate

Formula = Callable[[int], float]

CASES: dict[str, tuple[dict[str, Any], Formula]] = {
    "fixed": ({}, lambda i: 0.02),
    "step": ({"gamma": 0.3, "stepsize": 7}, lambda i: 0.02 * 0.3 ** (i // 7)),
    "exp": ({"gamma": 0.95}, lambda i: 0.02 * 0.95**i),
    "inv": ({"gamma": 0.1, "power": 0.75}, lambda i: 0.02 * (1 + 0.1 * i) ** -0.75),
    "multistep": ({"gamma": 0.5, "stepvalue": [5, 17]}, lambda i: 0.02 * 0.5 ** ((i >= 5) + (i >= 17))),
    "poly": ({"power": 1.5, "max_iter": 40}, lambda i: 0.02 * (1 - i / 40) ** 1.5),
    "sigmoid": ({"gamma": 0.3, "stepsize": 12}, lambda i: 0.02 / (1 + math.exp(-0.3 * (i - 12)))),
}


def policy(name: str, **fields: Any) -> LearningRate:
    fields.setdefault("base_lr", 0.02)
    return LearningRate(caffe_pb2.SolverParameter(lr_policy=name, **fields))


def test_the_cases_are_all_policies() -> None:
    assert set(CASES) == set(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_policy_follows_its_formula(name: str) -> None:
    fields, formula = CASES[name]
    rate = policy(name, **fields)
    for iteration in range(40):
        # 1 - iter / max_iter is a difference of float32 numbers, hence the absolute part.
        assert rate.advance(iteration) == pytest.approx(formula(iteration), rel=1e-6, abs=2e-9), (
            f"iteration {iteration}"
        )


def test_inv_shows_the_digits_of_the_originals_log() -> None:
    log = Path(__file__).resolve().parents[1] / "reference" / "logs" / "lenet_caffe_train.log"
    lines = re.findall(r"Iteration (\d+), lr = (\S+)", log.read_text())
    rate = policy("inv", base_lr=0.01, gamma=0.0001, power=0.75)
    assert len(lines) == 10
    assert [f"{np.float32(rate.at(int(iteration))):.6g}" for iteration, _ in lines] == [digits for _, digits in lines]


def test_asking_for_the_rate_takes_no_step() -> None:
    rate = policy("multistep", gamma=0.5, stepvalue=[3])
    assert rate.at(3) == rate.at(3) == pytest.approx(0.02)
    rate.advance(3)
    assert rate.at(3) == pytest.approx(0.01)


def test_multistep_takes_one_step_an_iteration_and_logs_it(log: Callable[[], list[str]]) -> None:
    rate = policy("multistep", gamma=0.5, stepvalue=[2, 3, 9])
    assert [rate.advance(iteration) for iteration in (5, 6, 7)] == pytest.approx([0.01, 0.005, 0.005])
    assert rate.current_step == 2
    assert log() == ["MultiStep Status: Iteration 5, step = 1", "MultiStep Status: Iteration 6, step = 2"]


def test_step_counts_its_steps() -> None:
    rate = policy("step", gamma=0.5, stepsize=4)
    rate.advance(9)
    assert rate.current_step == 2


def test_poly_stays_at_zero_after_the_last_iteration() -> None:
    rate = policy("poly", power=0.5, max_iter=10)
    assert [rate.advance(iteration) for iteration in (10, 11)] == [0, 0]


def test_sigmoid_far_from_its_step_neither_overflows_nor_fails() -> None:
    rate = policy("sigmoid", gamma=1.0, stepsize=5000)
    assert rate.advance(0) == 0
    assert rate.advance(10000) == pytest.approx(0.02)


def test_a_rate_that_overflows_is_infinite() -> None:
    assert policy("exp", gamma=10.0).advance(400) == math.inf


def test_changed_base_lr_takes_effect() -> None:
    param = caffe_pb2.SolverParameter(lr_policy="fixed", base_lr=0.5)
    rate = LearningRate(param)
    param.base_lr = 0.25
    assert rate.advance(0) == 0.25


@pytest.mark.parametrize("name", POLICIES)
def test_a_missing_field_is_named_with_the_formula(name: str) -> None:
    fields = {"base_lr": 0.1, **CASES[name][0]}
    for missing in fields:
        rest = {field: value for field, value in fields.items() if field != missing}
        param = caffe_pb2.SolverParameter(lr_policy=name, **rest)
        with pytest.raises(SolverError, match=f"^{missing} is missing. lr_policy '{name}' needs it: rate = base_lr"):
            LearningRate(param)


def test_a_zero_stepsize_is_refused() -> None:
    with pytest.raises(SolverError, match=r"^stepsize is out of range .* Expected more than 0, received 0\.$"):
        policy("step", gamma=0.1, stepsize=0)


def test_a_negative_gamma_is_refused() -> None:
    with pytest.raises(SolverError, match=r"\^ iter\)\. Expected at least 0, received -0\.1\.$"):
        policy("exp", gamma=-0.1)


def test_an_unknown_policy_names_the_nearest() -> None:
    with pytest.raises(
        SolverError, match=r"unknown lr_policy 'multi_step'. Did you mean 'multistep'.*Known policies: fixed"
    ):
        policy("multi_step")


def test_a_missing_policy_is_an_error() -> None:
    with pytest.raises(
        SolverError, match=r"^lr_policy is missing. Known policies: fixed, step, exp, inv, multistep, poly"
    ):
        policy("")
