"""Every kernel file compiles for NVIDIA GPUs too: without a warning, without spills, for the launches it assumes."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from caffe_lite import resources

KERNELS = resources.path("kernels")
REGISTERS = 65536  # of a multiprocessor, on every architecture since 7.5
STATIC_SHARED = 48 << 10  # bytes; more must be dynamic
REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers(.*?)\n", re.DOTALL
)
BOUNDS = re.compile(r"__launch_bounds__\((\d+)(?:, (\d+))?\)\s+(\w+)\(")

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.cu")), ids=lambda path: path.stem)
def test_nvcc_compiles_without_warnings_and_spills(path, architecture, tmp_path):
    report = compile_for(path, architecture, tmp_path)
    bounds = {name: (int(threads), int(blocks or 1)) for threads, blocks, name in BOUNDS.findall(path.read_text())}
    found = REPORT.findall(report)
    assert len(found) == path.read_text().count('extern "C" __global__')
    for kernel, spills, registers, rest in found:
        threads, blocks = bounds.get(kernel, (512, 1))
        shared = re.search(r"(\d+) bytes smem", rest)
        assert int(spills) == 0, f"{kernel} spills registers"
        assert int(registers) * threads * blocks <= REGISTERS, kernel
        assert not shared or int(shared.group(1)) <= STATIC_SHARED, kernel


def compile_for(path, architecture, folder):
    """Return the compiler's report on every kernel of a file."""
    source = folder / "pasted.cu"
    dialect = (KERNELS / "dialect.cuh").read_text().replace("#pragma once\n", "\n")
    source.write_text(f'#line 1 "dialect.cuh"\n{dialect}\n#line 1 "{path.name}"\n{path.read_text()}')
    flags = ["-std=c++17", f"-arch={architecture}", "-cubin", "-Werror", "all-warnings", "-Xptxas", "-v"]
    result = subprocess.run(
        ["nvcc", *flags, "-o", "out.cubin", source], cwd=folder, capture_output=True, text=True, check=False
    )
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    assert "warning" not in report
    return report
