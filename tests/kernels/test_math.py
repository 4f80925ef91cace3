"""The mathematics of `dialect.cuh`: the host's exp, log, tanh and so on, for all floats, against float64.

A test compiles one small loop a function, as the kernels are compiled.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from caffe_lite import resources
from caffe_lite.devices import host_build, host_device
from caffe_lite.devices.host_library import INSTRUCTION_SETS

Array = np.ndarray

LOOP = """
extern "C" __attribute__((visibility("default"))) void %s_all(int n, const float* x, const float* y, float* out) {
  (void)y;
  INDEPENDENT for (int i = 0; i < n; ++i) out[i] = %s;
}
"""


def exp_not_positive(x: Array) -> Array:
    x = -np.abs(x)
    return np.where(x < -87, 0.0, np.exp(x))


def sigmoid(x: Array) -> Array:
    return np.where(x < 0, exp_not_positive(x), 1.0) / (1 + np.exp(-np.abs(x)))


def softplus(x: Array) -> Array:
    return np.where(x > 0, x, 0.0) + np.log1p(exp_not_positive(x))


# Name -> definition in float64 and the error allowed, in units in the last place.  Measured: 0.8 to 2.8.
ONE_ARGUMENT: dict[str, tuple[Callable[[Array], Array], float]] = {
    "vexp": (np.exp, 1.5),
    "vexp_not_positive": (exp_not_positive, 1.5),
    "vexpm1": (np.expm1, 2.0),
    "vlog": (np.log, 1.5),
    "vlog1p": (np.log1p, 2.0),
    "vtanh": (np.tanh, 2.5),
    "vsigmoid": (sigmoid, 2.5),
    "vsoftplus": (softplus, 3.0),
}
CALLS = {name: f"{name}(x[i])" for name in ONE_ARGUMENT}
CALLS["vexp_not_positive"] = "vexp_not_positive(-fabsf(x[i]))"
CALLS |= {"vpow": "vpow(x[i], y[i])", "vpow_constant": "vpow(x[i], y[0])"}

BEST = INSTRUCTION_SETS.index(host_device().instruction_set)

instruction_sets = pytest.mark.parametrize("isa", INSTRUCTION_SETS[: BEST + 1])


@functools.cache
def compiled(isa: str) -> tuple[ctypes.CDLL, str]:
    """Return a library of the loops, and what the compiler said about vectors."""
    folder = Path(tempfile.mkdtemp())
    dialect = resources.path("kernels/dialect.cuh").read_text(encoding="utf-8").replace("#pragma once\n", "")
    source = folder / "math.cpp"
    source.write_text(dialect + "".join(LOOP % item for item in CALLS.items()), encoding="utf-8")
    flags = [*host_build.FLAGS, *host_build.INSTRUCTION_SETS[isa], "-shared"]
    command = [*host_build.compiler(), *flags, str(source), "-o", str(folder / "math.so")]
    if "g++" in command[0]:
        command.append("-fopt-info-vec-optimized")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return ctypes.CDLL(str(folder / "math.so")), result.stderr


def call(isa: str, name: str, x: Array, y: Array | float = 0.0) -> Array:
    """Return function `name` of each element, computed by the vector loop."""
    x = np.ascontiguousarray(x, np.float32)
    y = np.ascontiguousarray(np.broadcast_to(y, x.shape), np.float32)
    out = np.full_like(x, 7)
    getattr(compiled(isa)[0], f"{name}_all")(x.size, *(ctypes.c_void_p(array.ctypes.data) for array in (x, y, out)))
    return out


def assert_units(actual: Array, exact: Array, limit: float, x: Array, y: Array | float = 0.0) -> None:
    """Fail unless each element is within `limit` units in the last place, and is the float64 result where that is
    zero (with its sign), infinite or NaN."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    same = (actual.view(np.int32) == rounded.view(np.int32)) | (np.isnan(actual) & np.isnan(rounded))
    with np.errstate(invalid="ignore"):
        unit = np.spacing(np.maximum(np.abs(rounded), np.float32(1e-45))).astype(np.float64)
        error = np.where(same, 0.0, np.abs(actual.astype(np.float64) - exact) / unit)
    error = np.where(np.isnan(error), np.inf, error)
    # The largest floats may round to infinity and back within the limit.
    near_the_end = (np.abs(exact) < 3.5e38) & (np.abs(exact) > 3.4028e38)
    error = np.where(near_the_end, 0.0, error)
    worst = int(error.argmax())
    second = np.broadcast_to(y, x.shape)[worst]
    assert error[worst] <= limit, (
        f"{error[worst]:.3g} units in the last place at {x[worst]!r}, {second!r}: {actual[worst]!r}, "
        f"exactly {exact[worst]!r}; limit {limit}"
    )


def all_kinds_of_floats(step: int) -> Array:
    """Return every `step`-th bit pattern: all exponents, both signs, denormals, NaN."""
    return np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.1e-38, 3.4e38, -3.4e38], np.float32)


@instruction_sets
@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_a_function_of_one_argument_is_exact_to_its_last_digits_for_all_floats(name: str, isa: str) -> None:
    definition, limit = ONE_ARGUMENT[name]
    for x in (SPECIAL, all_kinds_of_floats(10007), np.linspace(-120, 120, 200_001), np.linspace(-2, 2, 200_001)):
        x = x.astype(np.float32)
        with np.errstate(all="ignore"):
            exact = definition(x.astype(np.float64))
        assert_units(call(isa, name, x), exact, limit, x)


@instruction_sets
def test_exp_fades_through_the_denormal_floats_and_overflows_where_it_must(isa: str) -> None:
    x = np.array([-87.4, -95, -103.2, -103.9, -104.1, 88.7, 88.73, 1000], np.float32)
    y = call(isa, "vexp", x)
    assert ((y[:4] > 0) & (y[:4] < np.finfo(np.float32).tiny)).all()
    assert y[4] == 0 and np.isfinite(y[5]) and np.isinf(y[6:]).all()


@instruction_sets
def test_pow_is_exact_to_one_unit_for_all_floats(isa: str) -> None:
    rng = np.random.default_rng(1)
    bases = all_kinds_of_floats(30011)
    for powers in (rng.uniform(-4, 4, bases.size), rng.standard_normal(bases.size) * 40, rng.permutation(bases)):
        check_pow(isa, bases, powers.astype(np.float32))
    near_one = (1 + rng.standard_normal(50_000) * 1e-3).astype(np.float32)
    check_pow(isa, near_one, (rng.standard_normal(near_one.size) * 3e4).astype(np.float32))


@instruction_sets
def test_pow_has_the_limits_and_signs_of_c(isa: str) -> None:
    whole = np.array([2, 3, -2, -3, 0.5, -0.5, 2.5, 16777215, 16777216, 1e30, -1e30], np.float32)
    x, y = (grid.ravel() for grid in np.meshgrid(np.r_[SPECIAL, whole], np.r_[SPECIAL, whole]))
    check_pow(isa, x, y)


def check_pow(isa: str, x: Array, y: Array) -> None:
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.float64), y.astype(np.float64))
    assert_units(call(isa, "vpow", x, y), exact, 1.0, x, y)


@instruction_sets
def test_the_rest_of_a_vector_loop_gives_the_same_bits(isa: str) -> None:
    x = np.linspace(0.1, 5, 37, dtype=np.float32)
    for name in CALLS:
        whole = call(isa, name, x, 0.7)
        alone = np.concatenate([call(isa, name, x[i : i + 1], 0.7) for i in range(x.size)])
        np.testing.assert_array_equal(alone, whole, err_msg=name)


@pytest.mark.skipif("g++" not in host_build.compiler()[0], reason="asks g++ for its notes")
@instruction_sets
def test_the_compiler_makes_vectors_of_them(isa: str) -> None:
    notes = compiled(isa)[1]
    loops = {line.split(":")[1] for line in notes.splitlines() if "loop vectorized" in line}
    too_narrow = 2 if isa == "baseline" else 0  # pow computes in double, and two a vector may not pay
    assert len(loops) >= len(CALLS) - too_narrow, notes
