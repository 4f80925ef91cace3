"""Every layer's recorded cases, on the CUDA device over the stand-in driver."""

from __future__ import annotations

import pytest
from layers import harness

from caffe_lite.layers import layer_type_list


@pytest.mark.parametrize("name", harness.reference_names(*layer_type_list()))
def test_a_layer_agrees_with_the_original(gpu, monkeypatch, name):
    monkeypatch.setattr(harness, "host_device", lambda: gpu)
    harness.check_reference(name)
