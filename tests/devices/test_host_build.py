"""Compiling the kernels for the CPU."""

from __future__ import annotations

import ctypes
import shutil

import pytest

from caffe_lite import resources
from caffe_lite.devices import host_build

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="needs a C++ compiler"
)

KERNEL = """// A kernel.
extern "C" __global__ void twice(int n, const float* in SIZE(n), float* out SIZE(n)) {
  ELEMENT_LOOP(i, n) out[i] = 2 * in[i]%s
}
"""


@pytest.fixture
def folder(tmp_path):
    """A folder of kernels with the package's dialect and pool, and room for one kernel file."""
    kernels = tmp_path / "kernels"
    shutil.copytree(resources.path("kernels/host"), kernels / "host")
    shutil.copyfile(resources.path("kernels/dialect.cuh"), kernels / "dialect.cuh")
    return kernels


def test_without_a_compiler_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(host_build.BuildError, match=r"found no C\+\+ compiler\. Install one .*apt install g\+\+"):
        host_build.compiler()


def test_cxx_names_the_compiler_with_its_flags(monkeypatch):
    monkeypatch.setenv("CXX", "ccache g++")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert host_build.compiler() == ["ccache", "g++"]


@needs_compiler
def test_a_compile_error_names_the_kernels_own_file_and_line(folder, tmp_path):
    (folder / "twice.cu").write_text(KERNEL % "")  # the semicolon is missing
    with pytest.raises(host_build.BuildError, match=r"(?s)exit code 1 of: .*kernels/twice\.cu:3"):
        host_build.build(folder, "baseline", tmp_path / "work", tmp_path / "lib.so")
    assert not (tmp_path / "lib.so").exists()


@needs_compiler
def test_a_new_kernel_file_is_in_the_library_without_further_ado(folder, tmp_path):
    (folder / "twice.cu").write_text(KERNEL % ";")
    host_build.build(folder, "baseline", tmp_path / "work", tmp_path / "lib.so")
    assert ctypes.CDLL(str(tmp_path / "lib.so"))["twice_launch"]
