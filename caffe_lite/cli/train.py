"""Train the model that a solver file describes, from random weights, from given weights, or from a snapshot.

    caffe-lite train -solver lenet_solver.prototxt
    caffe-lite train -solver lenet_solver.prototxt -weights pretrained.caffemodel
    caffe-lite train -solver lenet_solver.prototxt -snapshot lenet_iter_5000.solverstate

Ctrl-C stops after a snapshot; the hang-up signal writes a snapshot and goes on (-sigint_effect, -sighup_effect).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from caffe_lite.cli.flags import FlagParser, Flags, comma_list, integer, refuse_gpu, require
from caffe_lite.cli.progress import progress
from caffe_lite.errors import UsageError
from caffe_lite.log import init_log

if TYPE_CHECKING:
    from caffe_lite.solvers.base import Solver

__all__ = ["add_flags", "run"]

logger = logging.getLogger("caffe_lite")
_EFFECTS = ("stop", "snapshot", "none")


def add_flags(parser: FlagParser) -> None:
    """Declare the flags of ``train``."""
    parser.flag("solver", "the solver definition (prototxt)", metavar="FILE")
    parser.flag("weights", "weights to start from, by commas; not with -snapshot", comma_list, metavar="FILES")
    parser.flag("snapshot", "the solver state (.solverstate) to resume training from", metavar="FILE")
    parser.flag("iterations", "train to this iteration instead of the solver file's max_iter", integer(1), metavar="N")
    parser.flag("gpu", "GPUs to train on; this version has none", metavar="IDS")
    parser.flag("phase", "taken for compatibility: training always runs the TRAIN net", choices=("TRAIN", "TEST"))
    parser.flag("level", "the train net's level, instead of the solver file's", integer(), metavar="N")
    parser.flag("stage", "stages of the train net, by commas, beside the solver file's", comma_list, metavar="NAMES")
    parser.flag("sigint_effect", "what Ctrl-C does: stop (after a snapshot), snapshot or none", choices=_EFFECTS)
    parser.flag("sighup_effect", "what a hang-up signal does", choices=_EFFECTS)
    parser.switch("stop_on_nan", "end with an error at the first loss that is not a number")
    parser.set_defaults(sigint_effect="stop", sighup_effect="snapshot")


def run(flags: Flags) -> int:
    """Train as `flags` say; returns 0, also after a stop by a signal."""
    train(flags)
    return 0


def train(flags: Flags) -> Solver:
    """Train as `flags` say and return the solver, whose `iter` tells whether a signal ended it early."""
    handler = init_log()
    _check(flags)
    from caffe_lite import prototxt, solvers
    from caffe_lite.solvers import signals

    param = prototxt.read_solver(flags.solver)
    _apply(flags, param)
    logger.info("Use CPU.")
    # From here on, so that a signal while the nets are built is neither lost nor deadly.
    with signals.handled(flags.sigint_effect, flags.sighup_effect) as action:
        solver = solvers.get_solver(param, flags.solver)
        solver.stop_on_nan = flags.stop_on_nan
        solver.action = action
        if flags.snapshot:
            logger.info("Resuming from %s", flags.snapshot)
            solver.restore(flags.snapshot)
        logger.info("Starting Optimization")
        with progress(handler, solver.iter, param.max_iter) as show:
            solver.on_iteration = lambda solver: show(solver.iter)
            solver.solve()
    logger.info("Optimization Done.")
    return solver


def _check(flags: Flags) -> None:
    """Raise `UsageError` or `DeviceError` for flags that cannot be."""
    require(flags.solver, "a solver definition to train: -solver FILE")
    refuse_gpu(flags.gpu)
    if flags.snapshot and flags.weights:
        raise UsageError("Give a snapshot to resume training, or weights to finetune, but not both.")
    if flags.snapshot and flags.snapshot.endswith((".caffemodel", ".caffemodel.h5")):
        raise UsageError(
            f"-snapshot {flags.snapshot}: that is a file of weights. Expected a .solverstate. "
            f"To start from these weights give -weights {flags.snapshot}."
        )
    if flags.phase == "TEST":
        logger.warning("-phase TEST has no effect on train, which runs the TRAIN net.")


def _apply(flags: Flags, param: Any) -> None:
    """Put what `flags` ask for into the SolverParameter."""
    if flags.iterations:
        param.max_iter = flags.iterations
    if flags.level is not None:
        param.train_state.level = flags.level
    if flags.stage:
        param.train_state.stage.extend(flags.stage)
    if flags.snapshot or flags.weights:
        del param.weights[:]
    if flags.weights:
        param.weights.append(",".join(flags.weights))
    if param.HasField("solver_mode") and param.solver_mode == param.GPU:
        logger.warning(
            "%s asks for solver_mode GPU; this version does not run nets on a GPU yet, so: CPU.", flags.solver
        )
        param.solver_mode = param.CPU
