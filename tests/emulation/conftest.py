"""Where the compiled kernels lie: pytest's cache keeps them from run to run, by the hash of what they were made of."""

from __future__ import annotations

import pathlib

import pytest

from . import emulation


@pytest.fixture(scope="session")
def library_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return the folder for `emulation.build`; skip where there is no emulation."""
    if emulation.missing():
        pytest.skip(emulation.missing())
    cache = getattr(request.config, "cache", None)  # none under -p no:cacheprovider
    return cache.mkdir("emulation") if cache else tmp_path_factory.mktemp("emulation")
