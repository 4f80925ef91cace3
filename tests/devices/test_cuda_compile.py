"""Compiling the kernels for a GPU: the cache and what goes wrong.  Needs nvcc, no GPU."""

from __future__ import annotations

import os
import re
import shutil
import stat

import pytest

from caffe_lite.devices import cuda_compile
from caffe_lite.devices.cuda_compile import Compiler, architecture, cache_folder, find_nvcc
from caffe_lite.errors import DeviceError

KERNEL = 'extern "C" __global__ void twice(int n, float* x SIZE(n)) {\n  ELEMENT_LOOP(i, n) x[i] *= 2;\n}\n'
DIALECT = "#define SIZE(n)\n#define ELEMENT_LOOP(i, n) for (int i = threadIdx.x; i < (n); i += blockDim.x)\n"

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Return the cache's folder, empty."""
    monkeypatch.setenv("CAFFE_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path):
    """Return a kernel file beside a dialect of its own."""
    (tmp_path / "dialect.cuh").write_text(DIALECT)
    (tmp_path / "twice.cu").write_text(KERNEL)
    return tmp_path / "twice.cu"


@pytest.fixture
def compilations(monkeypatch):
    """Return the list of commands that have run."""
    commands, run = [], cuda_compile._run
    monkeypatch.setattr(cuda_compile, "_run", lambda command: commands.append(command) or run(command))
    return commands


def fake_nvcc(tmp_path, monkeypatch, body):
    """Put a script in nvcc's place."""
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("CAFFE_LITE_NVCC", str(script))


# -- the cache


@needs_nvcc
def test_the_second_compiler_reads_what_the_first_has_kept(path, folder, compilations):
    cubin = Compiler("sm_75").cubin(path)
    count = len(compilations)
    assert Compiler("sm_75").cubin(path) == cubin
    assert cubin.startswith(b"\x7fELF")
    assert len(compilations) == count
    assert len(list(folder.iterdir())) == 1  # no temporary files are left


@needs_nvcc
def test_architecture_flags_dialect_and_source_each_make_another_key(path, folder):
    Compiler("sm_75").cubin(path)
    Compiler("sm_80").cubin(path)
    Compiler("sm_75", ("-DX=1",)).cubin(path)
    path.write_text(KERNEL.replace("2", "3"))
    Compiler("sm_75").cubin(path)
    path.with_name("dialect.cuh").write_text(DIALECT + "\n")
    Compiler("sm_75").cubin(path)
    assert len(list(folder.iterdir())) == 5


@needs_nvcc
@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: b"x" + content])
def test_a_damaged_file_is_compiled_again(path, folder, damage):
    cubin = Compiler("sm_75").cubin(path)
    [kept] = folder.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert Compiler("sm_75").cubin(path) == cubin
    assert kept.read_bytes() == whole


@needs_nvcc
def test_a_cache_that_cannot_be_written_costs_time_only(path, folder, monkeypatch):
    compiler = Compiler("sm_75")
    shutil.rmtree(folder)
    assert compiler.cubin(path)
    assert not folder.exists()


def test_only_this_user_may_enter_the_folder(folder):
    assert cache_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    cache_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_folder_is_the_users_cache_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("CAFFE_LITE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "caffe_lite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "caffe_lite"


def test_a_folder_of_another_user_is_refused(folder, monkeypatch):
    cache_folder()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(DeviceError, match=r"cache belongs to another user, who could change .* Set CAFFE_LITE_CACHE"):
        cache_folder()


def test_a_folder_that_cannot_be_made_says_where(folder):
    folder.write_text("a file")
    with pytest.raises(DeviceError, match=r"cache: compiled kernels cannot be kept there: File exists\. Set CAFFE"):
        cache_folder()


# -- what goes wrong


@needs_nvcc
def test_a_compile_error_names_the_kernels_file_and_line(path, folder):
    path.write_text(KERNEL.replace("x[i]", "y[i]"))
    with pytest.raises(DeviceError) as caught:
        Compiler("sm_75").cubin(path)
    first, *others = str(caught.value).splitlines()
    assert first.startswith('kernels/twice.cu:2: the kernel does not compile: identifier "y" is undefined. If you did')
    assert first.endswith(f"the source is kept in {folder}/failed-twice.cu.")
    assert "y[i]" in (folder / "failed-twice.cu").read_text()
    assert re.match(r"Exit code \d of: .*nvcc -std=c\+\+17 ", others[0])


def test_a_compiler_that_says_nothing_useful_is_quoted(path, tmp_path, monkeypatch):
    fake_nvcc(tmp_path, monkeypatch, 'test "$1" = --version || { echo Segmentation fault; exit 9; }')
    with pytest.raises(DeviceError, match=r"(?s)kernels/twice\.cu: the kernel does not compile: nvcc failed\..*fault"):
        Compiler("sm_75").cubin(path)


@needs_nvcc
def test_an_architecture_that_nvcc_does_not_know_asks_for_a_newer_toolkit(path):
    with pytest.raises(DeviceError, match=r"nvcc \(CUDA [\d.]+\) cannot compile for sm_999\. Install a newer CUDA"):
        Compiler("sm_999").cubin(path)


def test_an_architecture_that_the_kernels_are_not_made_for_is_refused():
    assert architecture((7, 5), "GPU 0") == "sm_75"
    assert architecture((12, 1), "GPU 0") == "sm_121"
    for capability in ((7, 0), (13, 0)):
        with pytest.raises(DeviceError, match=rf"GPU 0 has compute capability {capability[0]}\.0\. Expected 7\.5 to"):
            architecture(capability, "GPU 0")


def test_a_missing_nvcc_says_where_it_was_sought(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match=r"nvcc is neither on the PATH nor in CUDA_HOME .* Install the CUDA toolkit"):
        find_nvcc()
    monkeypatch.setenv("CAFFE_LITE_NVCC", "/no/nvcc")
    with pytest.raises(DeviceError, match=r"CAFFE_LITE_NVCC names '/no/nvcc', which is no program\."):
        find_nvcc()


def test_an_nvcc_that_does_not_run_is_named(tmp_path, monkeypatch):
    fake_nvcc(tmp_path, monkeypatch, "echo broken >&2; exit 3")
    with pytest.raises(DeviceError, match=r"bin/nvcc does not run \(exit code 3\): broken\. Repair it\."):
        Compiler("sm_75")
    cuda_compile._version.cache_clear()
    (tmp_path / "bin" / "nvcc").write_bytes(b"\x7fELF is not enough")
    with pytest.raises(DeviceError, match=r"bin/nvcc does not start: Exec format error\. Repair the CUDA toolkit\."):
        Compiler("sm_75")


def test_flags_from_the_environment_stay_out(path, tmp_path, monkeypatch):
    fake_nvcc(tmp_path, monkeypatch, 'echo "$NVCC_PREPEND_FLAGS$NVCC_APPEND_FLAGS$3"; exit 1')
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", "-prepended")
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-appended")
    monkeypatch.setattr(cuda_compile, "_version", lambda nvcc: "1")
    with pytest.raises(DeviceError) as caught:
        Compiler("sm_75").cubin(path)
    assert str(caught.value).endswith("\n-cubin")
