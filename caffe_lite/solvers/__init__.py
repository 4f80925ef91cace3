"""The solver types: every module of this folder is imported, and registers its classes."""

from __future__ import annotations

import importlib
import os
import pkgutil
from typing import Any

from caffe_lite import prototxt
from caffe_lite.errors import SolverError, suggest
from caffe_lite.proto import caffe_pb2
from caffe_lite.solvers.base import REGISTRY, Solver, register
from caffe_lite.solvers.sgd import SGDSolver

__all__ = ["REGISTRY", "SGDSolver", "Solver", "get_solver", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def get_solver(solver: str | os.PathLike[str] | Any, solver_file: str | os.PathLike[str] | None = None) -> Solver:
    """Return the solver that a prototxt file, or a ``SolverParameter``, describes; its ``type`` picks the class.

    `solver_file` says where a ``SolverParameter`` was read from: nets are also looked for beside it, and its name is
    the default ``snapshot_prefix``.  Raises `SolverError` for settings that cannot be run, and what reading the files
    and building the nets raises.
    """
    if isinstance(solver, (str, os.PathLike)):
        solver, solver_file = prototxt.read_solver(os.fspath(solver)), solver
    if solver.type not in REGISTRY:
        in_caffe = solver.type.upper() in caffe_pb2.SolverParameter.SolverType.keys()  # noqa: SIM118 (no dict)
        what = "this version does not have the" if in_caffe else "unknown"
        problem = f"{os.fspath(solver_file or 'solver')}: {what} solver type '{solver.type}'."
        known = f"Known types: {', '.join(sorted(REGISTRY))}."
        raise SolverError(" ".join(filter(None, [problem, suggest(solver.type, REGISTRY), known])))
    return REGISTRY[solver.type](solver, solver_file)
