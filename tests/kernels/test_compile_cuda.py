"""Every kernel file compiles for NVIDIA GPUs too, without a warning."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from caffe_lite import resources

KERNELS = resources.path("kernels")

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.cu")), ids=lambda path: path.stem)
def test_nvcc_compiles_without_warnings(path, architecture, tmp_path):
    source = tmp_path / "pasted.cu"
    dialect = (KERNELS / "dialect.cuh").read_text().replace("#pragma once\n", "\n")
    source.write_text(f'#line 1 "dialect.cuh"\n{dialect}\n#line 1 "{path.name}"\n{path.read_text()}')
    result = subprocess.run(
        ["nvcc", "-std=c++17", f"-arch={architecture}", "-cubin", "-Werror", "all-warnings", "-o", "out.cubin", source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "warning" not in result.stderr
