"""The checks that stand between a launch and a crash."""

from __future__ import annotations

import numpy as np
import pytest

from caffe_lite.devices import host_device
from caffe_lite.errors import KernelError


@pytest.fixture
def device():
    return host_device()


def test_an_unknown_kernel_names_the_nearest(device):
    with pytest.raises(KernelError, match=r"there is no kernel 'fil'. Did you mean 'fill'\?"):
        device.launch("fil", 1, 1, 0.0, device.alloc(1))


def test_a_wrong_number_of_arguments_names_kernel_and_line(device):
    with pytest.raises(KernelError, match=r"kernels/device.cu:\d+: kernel fill: takes 3 arguments, received 2"):
        device.launch("fill", 1, 1, 0.0)


def test_a_buffer_too_small_names_argument_and_both_sizes(device):
    with pytest.raises(KernelError, match=r"kernel fill: argument 'out' must have SIZE\(n\) = 11 elements, received"):
        device.launch("fill", 11, 11, 0.0, device.alloc(10))


def test_a_buffer_of_another_dtype_names_both(device):
    with pytest.raises(KernelError, match=r"argument 'out' must be float32, received Buffer\(int32"):
        device.launch("fill", 4, 4, 0.0, device.alloc(4, np.int32))


def test_a_number_in_place_of_a_buffer_is_refused(device):
    with pytest.raises(KernelError, match="argument 'out' must be a buffer, received 3"):
        device.launch("fill", 1, 1, 0.0, 3)


def test_a_buffer_in_place_of_a_number_is_refused(device):
    with pytest.raises(KernelError, match="kernel fill: received"):
        device.launch("fill", 1, 1, device.alloc(1), device.alloc(1))


def test_a_number_out_of_range_is_refused(device):
    with pytest.raises(KernelError, match="kernel fill: received"):
        device.launch("fill", 1, 0.5, 0.0, device.alloc(1))


def test_a_struct_with_the_wrong_number_of_fields_is_refused(device):
    with pytest.raises(KernelError, match="kernel transform_bytes: received"):
        device.launch("transform_bytes", 1, 1, (1, 2), 1.0, *[device.alloc(4)] * 4)
