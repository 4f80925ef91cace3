"""Python: a layer computed by a Python class, and `Layer`, which such a class derives from."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caffe_lite.blob import Blob
from caffe_lite.errors import NetError, PythonLayerError, suggest
from caffe_lite.layers import base

_allowed = True


def set_python_layers(allowed: bool) -> None:
    """Allow or forbid Python layers.  They run the code that a prototxt names: forbid them for one you do not trust."""
    global _allowed
    _allowed = allowed


class BlobVec(list[Blob]):
    """A Python layer's params: a list that makes its blobs."""

    def __init__(self, device: Any) -> None:
        super().__init__()
        self._device = device

    def add_blob(self, *shape: int) -> None:
        """Append a param of `shape`, filled with zeros."""
        self.append(Blob(self._device, shape))


class Layer:
    """The base class of Python layers, as pycaffe's ``caffe.Layer``.

    >>> class Scale(caffe.Layer):
    ...     def setup(self, bottom, top):
    ...         self.factor = float(self.param_str)
    ...     def reshape(self, bottom, top):
    ...         top[0].reshape(*bottom[0].shape)
    ...     def forward(self, bottom, top):
    ...         top[0].data[...] = self.factor * bottom[0].data
    ...     def backward(self, top, propagate_down, bottom):
    ...         bottom[0].diff[...] = self.factor * top[0].diff

    `reshape` is called before each `forward`, and either may reshape the tops.  `setup` may append params with
    ``self.blobs.add_blob(2, 3)``; `backward` adds to their diffs, and overwrites the bottoms'.

    Attributes:
        param_str, phase: from the prototxt; set before `setup`.
        blobs: the params.
    """

    type = "Python"
    param_str = ""
    phase = 0
    blobs: BlobVec

    def __init__(self, param: Any = None) -> None:
        """`param` is the ``LayerParameter``."""

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read ``self.param_str`` and create the params."""

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Give the tops their shapes."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Compute the tops' data."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        """Compute the bottoms' diffs."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")


@base.register("Python")
class Python(base.Layer):
    """A layer whose forward and backward are a Python class of the user's, derived from `Layer`.

    Forward: ``reshape(bottom, top)``, then ``forward(bottom, top)``.
    Backward: ``backward(top, propagate_down, bottom)``.

    Shapes: as the class makes them.

    Fields: ``python_param`` {module, layer, param_str, share_in_parallel}.  The module is imported, from the current
    folder if it is nowhere else; ``layer`` is the class.

    An exception of the class reaches the caller as the cause of a `PythonLayerError`, which names the layer.

    *Caffe's quirks.*  The class gets no gradient unless the net needs one; a loss needs a ``loss_weight``.
    ``share_in_parallel`` changes nothing: one process has one instance.  What this object itself does not have is the
    instance's: ``net.layers[0].my_attribute`` reads it and sets it.
    """

    in_place = True
    runs_python = True
    python_backward = True

    def __init__(self, param: Any, phase: int, device: Any) -> None:
        super().__init__(param, phase, device)
        layer_class = _find_class(param.python_param)
        self._class_name = f"{layer_class.__module__}.{layer_class.__name__}"
        self.instance = self._guarded("__init__", layer_class, param)
        self.blobs = self.instance.blobs = BlobVec(device)
        self.instance.phase = phase
        self.instance.param_str = str(param.python_param.param_str)

    def __getattr__(self, name: str) -> Any:
        if name == "instance":
            raise AttributeError(name)
        return getattr(self.instance, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = "instance" not in vars(self) or name in vars(self) or hasattr(type(self), name)
        if own:
            super().__setattr__(name, value)
        else:
            setattr(self.instance, name, value)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._call("setup", bottom, top)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._call("reshape", bottom, top)

    def prepare(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._call("reshape", bottom, top)
        self._call("forward", bottom, top)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        pass  # `prepare` has computed the tops

    def backward(self, top: list[Blob], propagate_down: Sequence[bool], bottom: list[Blob]) -> None:
        if type(self.instance).backward is Layer.backward:
            raise NotImplementedError
        self._call("backward", top, propagate_down, bottom)

    def _call(self, method: str, *args: Sequence[Any]) -> None:
        self._guarded(method, getattr(self.instance, method), *map(list, args))

    def _guarded(self, method: str, function: Any, *args: Any) -> Any:
        """Call `function`.  Raises `PythonLayerError`, with the exception as its cause."""
        try:
            return function(*args)
        except Exception as error:
            raise PythonLayerError(f"{self._class_name}.{method} raised {_described(error)}") from error


def _find_class(param: Any) -> type[Layer]:
    """Return the class that a ``PythonParameter`` names.  Raises `NetError`, or what its module raises."""
    if not _allowed:
        raise NetError(
            f"Python layers are forbidden, and this one would run the code of module '{param.module}'. "
            "Call caffe_lite.set_python_layers(True) if you trust it."
        )
    if not param.module or not param.layer:
        raise NetError("python_param: module and layer must both be given.")
    found = getattr(_import(param.module), param.layer, None)
    if found is None:
        known = [name for name, value in vars(sys.modules[param.module]).items() if _is_layer(value)]
        hint = suggest(param.layer, known) or f"Its Python layers are {', '.join(sorted(known)) or 'none'}."
        raise NetError(f"module '{param.module}' has no class '{param.layer}'. {hint}")
    if not _is_layer(found):
        raise NetError(f"'{param.module}.{param.layer}' is not a Python layer. Derive the class from caffe_lite.Layer.")
    layer_class: type[Layer] = found
    return layer_class


def _is_layer(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Layer) and value is not Layer


def _import(module: str) -> Any:
    """Import `module`; the current folder joins the folders that Python looks into, as the last."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise PythonLayerError(f"importing module '{module}' raised {_described(error)}") from error
        raise NetError(
            f"python_param: there is no module '{module}'. Put its folder on PYTHONPATH, or run in that folder."
        ) from error
    except Exception as error:
        raise PythonLayerError(f"importing module '{module}' raised {_described(error)}") from error


def _described(error: Exception) -> str:
    """Return an exception's type, text and place, for one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{type(error).__name__}{f': {error}' if str(error) else ''}{place}"
