"""The kernels by name, and the check that a launch fits its kernel."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from caffe_lite import resources
from caffe_lite.devices.base import Buffer
from caffe_lite.devices.signature import TYPES, Parameter, Signature, parse
from caffe_lite.errors import KernelError, suggest


class Kernel:
    """A kernel's signature, made ready to check and pack arguments quickly."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.name = signature.name
        self._pack = struct.Struct(signature.format).pack
        self._sizes: Callable[..., tuple[int, ...]] = signature.sizes()
        self._pointers = [
            (position, parameter, np.dtype(TYPES[parameter.type][1]))
            for position, parameter in enumerate(signature.parameters)
            if parameter.is_pointer
        ]

    def pack(self, args: Sequence[Buffer | float | tuple[int, ...]]) -> bytes:
        """Return the arguments as the C compiler lays them out.  Raises `KernelError` if they do not fit."""
        parameters = self.signature.parameters
        if len(args) != len(parameters):
            raise self._error(f"takes {len(parameters)} arguments, received {len(args)}")
        sizes = self._sizes_of(args)
        for (position, parameter, dtype), size in zip(self._pointers, sizes, strict=True):
            self._check_buffer(parameter, args[position], dtype, size)
        values: list[Any] = []
        for parameter, argument in zip(parameters, args, strict=True):
            if parameter.is_pointer:
                values.append(argument.pointer)  # type: ignore[union-attr]
            elif parameter.fields:
                values += argument  # type: ignore[arg-type]
            else:
                values.append(argument)
        try:
            return self._pack(*values)
        except struct.error as error:
            raise self._error(f"received {args}: {error}") from None

    def largest_buffer(self, args: Sequence[Buffer | float | tuple[int, ...]]) -> int:
        """Return the number of elements of the largest buffer that a checked launch touches."""
        return max(self._sizes(*args), default=0)

    def _sizes_of(self, args: Sequence[Buffer | float | tuple[int, ...]]) -> tuple[int, ...]:
        try:
            return self._sizes(*args)
        except TypeError as error:  # a struct with the wrong number of fields, or a buffer where a number belongs
            raise self._error(f"received {args}: {error}") from None

    def _check_buffer(self, parameter: Parameter, argument: object, dtype: np.dtype[Any], size: int) -> None:
        if not isinstance(argument, Buffer):
            raise self._error(f"argument '{parameter.name}' must be a buffer, received {argument!r}")
        if argument.dtype != dtype:
            raise self._error(f"argument '{parameter.name}' must be {dtype}, received {argument!r}")
        if argument.size < size:
            raise self._error(
                f"argument '{parameter.name}' must have SIZE({parameter.size}) = {size} elements, received {argument!r}"
            )

    def _error(self, what: str) -> KernelError:
        signature = self.signature
        return KernelError(f"kernels/{signature.file}:{signature.line}: kernel {self.name}: {what}.")


@functools.cache
def all_kernels() -> dict[str, Kernel]:
    """Return every element and row kernel of the package by name."""
    kernels: dict[str, Kernel] = {}
    for path in sorted(resources.path("kernels").glob("*.cu")):
        for signature in parse(path):
            assert signature.name not in kernels, f"two kernels are called {signature.name}"
            kernels[signature.name] = Kernel(signature)
    return kernels


def find(name: str) -> Kernel:
    """Return the kernel called `name`.  Raises `KernelError` with the nearest names."""
    kernels = all_kernels()
    if name not in kernels:
        raise KernelError(f"there is no kernel '{name}'. {suggest(name, kernels)}".rstrip())
    return kernels[name]
