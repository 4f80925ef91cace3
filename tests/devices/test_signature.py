"""Reading kernel signatures from .cu source."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from caffe_lite import resources
from caffe_lite.devices.signature import SignatureError, parse

SOURCE = """
// extern "C" __global__ void commented(int n) {}
struct Shape { int rows, columns; int depth; };
extern "C" __global__ void scale(int n, float factor, const float* __restrict__ in SIZE(n),
                                 float* __restrict__ out SIZE(n)) {
  ELEMENT_LOOP(i, n) out[i] = factor * in[i];
}
extern "C" __global__ void rows(Shape shape, const unsigned char* bytes SIZE(shape.rows * (shape.columns + 1) / 2)) {
  ROW_LOOP(r, shape.rows) {}
}
extern "C" __global__ void __launch_bounds__(64, 2)
tile(long long n, double* out SIZE(4)) {}
"""


def signatures(tmp_path: Path, text: str):
    path = tmp_path / "some.cu"
    path.write_text(text)
    return {signature.name: signature for signature in parse(path)}


def test_names_shapes_and_lines_are_those_of_the_source(tmp_path):
    found = signatures(tmp_path, SOURCE)
    assert [(s.name, s.shape, s.line) for s in found.values()] == [
        ("scale", "element", 4),
        ("rows", "row", 8),
        ("tile", "tile", 11),
    ]


def test_parameters_know_type_constness_and_size(tmp_path):
    n, factor, source, out = signatures(tmp_path, SOURCE)["scale"].parameters
    assert (n.type, n.is_pointer, factor.type) == ("int", False, "float")
    assert (source.type, source.is_pointer, source.is_const, source.size) == ("float", True, True, "n")
    assert not out.is_const


def test_sizes_are_integer_arithmetic_over_scalars_and_struct_fields(tmp_path):
    sizes = signatures(tmp_path, SOURCE)["rows"].sizes()
    assert sizes((3, 4, 9), None) == (3 * 5 // 2,)


def test_the_packed_layout_is_the_c_compilers(tmp_path):
    found = signatures(tmp_path, SOURCE)
    assert struct.calcsize(found["scale"].format) == 24
    assert struct.calcsize(found["rows"].format) == 24  # twelve bytes of ints, four of padding, a pointer


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("int n, half* x SIZE(n)", "parameter 'x' has the type 'half'. Expected one of int, unsigned"),
        ("int n, float* x", "parameter 'x': a pointer ends in SIZE\\(elements\\), nothing else does"),
        ("int n SIZE(n)", "parameter 'n': a pointer ends in SIZE\\(elements\\), nothing else does"),
        ("const, float x", "cannot read the parameter 'const'"),
        ("int n, float* x SIZE(n", "'\\(' is never closed"),
    ],
)
def test_a_parameter_outside_the_dialect_is_an_error(tmp_path, parameters, message):
    with pytest.raises(SignatureError, match=message):
        signatures(tmp_path, f'extern "C" __global__ void bad({parameters}) {{ ELEMENT_LOOP(i, n) {{}} }}')


@pytest.mark.parametrize("size", ["count", "n ** 2", "len(n)", "n if n else 1"])
def test_a_size_that_is_more_than_arithmetic_is_an_error(tmp_path, size):
    found = signatures(
        tmp_path, f'extern "C" __global__ void bad(int n, float* x SIZE({size})) {{ ELEMENT_LOOP(i, n); }}'
    )
    with pytest.raises(SignatureError, match=r"some.cu:1: kernel bad: SIZE\(.*\) is more than integer arithmetic on n"):
        found["bad"].sizes()


@pytest.mark.parametrize("path", sorted(resources.path("kernels").glob("*.cu")), ids=lambda path: path.stem)
def test_every_kernel_of_the_package_follows_the_dialect(path):
    found = parse(path)
    assert found, f"{path.name} holds no kernel"
    for signature in found:
        signature.sizes()
        assert signature.shape in ("element", "row", "tile")
        assert any(p.is_pointer and not p.is_const for p in signature.parameters), f"{signature.name} writes nothing"
