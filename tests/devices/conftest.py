"""A CudaDevice without a GPU: real PyCUDA and nvcc over the stand-in driver of `tests/fake_cuda`."""

from __future__ import annotations

import sys

import pytest
from fake_cuda import fake_cuda

from caffe_lite.devices import cuda_compile


@pytest.fixture(scope="session")
def machine(tmp_path_factory):
    """Return the stand-in, once for the session; PyCUDA must not have found another driver before."""
    if fake_cuda.missing():
        pytest.skip(fake_cuda.missing())
    if "pycuda.driver" in sys.modules:
        pytest.skip("PyCUDA has been loaded with another driver")
    folder = tmp_path_factory.mktemp("fake_cuda")
    machine = fake_cuda.install(folder)
    compile_file = cuda_compile.Compiler.cubin

    def cubin(compiler, path):
        compiled = compile_file(compiler, path)
        machine.compiled(path, compiled)
        return compiled

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAFFE_LITE_CACHE", str(folder / "cache"))
        patch.setenv("FAKE_CUDA_CAPABILITY", "75")  # no tensor cores, whose emulation takes ten times as long
        patch.setattr(cuda_compile.Compiler, "cubin", cubin)
        yield machine


@pytest.fixture(scope="session")
def shared_gpu(machine):
    """Return a CudaDevice that has compiled kernels before."""
    from caffe_lite.devices.cuda import CudaDevice

    return CudaDevice()


@pytest.fixture
def gpu(shared_gpu, machine):
    """Return the CudaDevice with `machine.launched` empty."""
    shared_gpu.synchronize()
    machine.launched.clear()
    return shared_gpu
