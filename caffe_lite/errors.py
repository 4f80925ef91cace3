"""Every error that caffe_lite raises on purpose.

    CaffeError
    ├── PrototxtError      ValueError          text that does not follow the schema
    ├── NetError           ValueError          a net that cannot be built from what was read
    │   └── ShapeError     ValueError          blobs whose shapes do not fit together
    ├── SolverError        ValueError          solver settings that cannot be run
    ├── WeightsError       ValueError          a file that is not, or does not hold, the weights asked for
    ├── DataError          ValueError          a database, an image or a label that cannot be used
    ├── UsageError         ValueError          a call or a command line with the wrong arguments
    ├── KernelError        ValueError          a launch that does not match its kernel's signature
    ├── DeviceError        RuntimeError        a device that is absent or does not work
    ├── PythonLayerError   RuntimeError        an exception in the code of a Python layer, which is its cause
    ├── MissingFileError   FileNotFoundError   a file that is not there
    ├── FileAccessError    OSError             a file that is there, but cannot be read or written
    └── OutOfMemoryError   MemoryError         more memory asked for than there is

A message has the form "where: what is wrong. Expected X, received Y. Next step."  `Net` adds the place (file, line,
layer, type) once, with `located`; layers raise only the sentence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CaffeError(Exception):
    """The base class of everything caffe_lite raises on purpose."""

    def located(self, where: str) -> CaffeError:
        """Return the same error with `where` (for example ``net.prototxt:42: layer 'pool1' (Pooling)``) in front."""
        error = type(self)(f"{where}: {self}")
        error.__cause__ = self.__cause__
        return error


class PrototxtError(CaffeError, ValueError):
    """Text that does not follow the schema."""


class NetError(CaffeError, ValueError):
    """A net that cannot be built from what was read."""


class ShapeError(NetError):
    """Blobs whose shapes do not fit together."""


class SolverError(CaffeError, ValueError):
    """Solver settings that cannot be run."""


class WeightsError(CaffeError, ValueError):
    """A file that is not, or does not hold, the weights asked for."""


class DataError(CaffeError, ValueError):
    """A database, an image or a label that cannot be used."""


class UsageError(CaffeError, ValueError):
    """A call or a command line with the wrong arguments."""


class KernelError(CaffeError, ValueError):
    """A launch that does not match its kernel's signature."""


class DeviceError(CaffeError, RuntimeError):
    """A device that is absent or does not work."""


class PythonLayerError(CaffeError, RuntimeError):
    """An exception in the code of a Python layer, which is its cause."""


class MissingFileError(CaffeError, FileNotFoundError):
    """A file that is not there."""


class FileAccessError(CaffeError, OSError):
    """A file that is there, but cannot be read or written."""


class OutOfMemoryError(CaffeError, MemoryError):
    """More memory asked for than there is."""


def suggest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return a sentence with the names in `known` nearest to `name`, or an empty string where none is near.

    >>> suggest("Convolutoin", ["Convolution", "Pooling"])
    "Did you mean 'Convolution'?"
    """
    lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lower, n=limit, cutoff=0.6)
    if not near:
        return ""
    return "Did you mean " + " or ".join(f"'{lower[candidate]}'" for candidate in near) + "?"
