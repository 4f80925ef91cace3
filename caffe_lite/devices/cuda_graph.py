"""CUDA graphs on a PyCUDA stream: PyCUDA has none, but the driver takes its stream handles.

graph = Graph(stream, launch_everything)   # captured, not run
graph.launch(stream)
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from caffe_lite.errors import DeviceError

CAPTURE_MODE_RELAXED = 2  # whatever other streams and threads do meanwhile is none of the graph's business


class Graph:
    """What `launch` puts on `stream`, captured once, to be launched as one.

    Must be made, launched and destroyed while the stream's context is current.  `stream` must not be the default one.

    Raises:
        DeviceError: the driver refuses.
    """

    def __init__(self, stream: Any, launch: Callable[[], None]) -> None:
        driver, handle = _driver(), ctypes.c_void_p(stream.handle)
        graph = ctypes.c_void_p()
        self.handle = ctypes.c_void_p()
        _check("cuStreamBeginCapture_v2", driver.cuStreamBeginCapture_v2(handle, CAPTURE_MODE_RELAXED))
        try:
            launch()
        finally:
            result = driver.cuStreamEndCapture(handle, ctypes.byref(graph))
        _check("cuStreamEndCapture", result)
        try:
            _check(
                "cuGraphInstantiateWithFlags",
                driver.cuGraphInstantiateWithFlags(ctypes.byref(self.handle), graph, ctypes.c_ulonglong(0)),
            )
        finally:
            driver.cuGraphDestroy(graph)

    def launch(self, stream: Any) -> None:
        """Run everything that was captured, in its order, behind what `stream` holds already."""
        _check("cuGraphLaunch", _driver().cuGraphLaunch(self.handle, ctypes.c_void_p(stream.handle)))

    def destroy(self) -> None:
        """Free the graph; it is not launched again."""
        handle, self.handle = self.handle, ctypes.c_void_p()
        if handle:
            _driver().cuGraphExecDestroy(handle)


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")  # PyCUDA has loaded it


def _check(function: str, result: int) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        reason = text.value.decode() if text.value else f"error {result}"
        raise DeviceError(f"the NVIDIA driver refuses to record a graph ({function}): {reason}. Update the driver.")
