"""Where the kernels, the schema and the bundled models lie: inside the installed package, or in the repository."""

from __future__ import annotations

import pathlib

from caffe_lite.errors import MissingFileError

PACKAGE = pathlib.Path(__file__).resolve().parent


def path(name: str) -> pathlib.Path:
    """Return the path of a packaged file or folder, for example ``kernels/neuron.cu`` or ``models/lenet``.

    A wheel holds them inside the package; an editable install leaves them in the repository around it.
    Raises `MissingFileError` if it is in neither.
    """
    for root in (PACKAGE, PACKAGE.parent):
        candidate = root / name
        if candidate.exists():
            return candidate
    raise MissingFileError(f"{name} is neither in {PACKAGE} nor beside it. Reinstall caffe_lite.")
