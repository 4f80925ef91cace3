"""What every solver has in common: the nets, the iteration, testing, the log, snapshots and resuming.

One iteration: test if it is due; clear the params' diffs; ``iter_size`` times forward and backward; log if it is due;
update; snapshot if it is due or asked for.  A subclass says how to update (`apply_update`).
"""

from __future__ import annotations

import abc
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from caffe_lite import prototxt, random
from caffe_lite.devices.tape import Program
from caffe_lite.errors import SolverError
from caffe_lite.graph import text_of
from caffe_lite.net import Net
from caffe_lite.proto import caffe_pb2
from caffe_lite.serialization import caffemodel, files, solverstate
from caffe_lite.solvers import history, nets
from caffe_lite.solvers.diagnosis import first_nonfinite

logger = logging.getLogger("caffe_lite")

Class = TypeVar("Class", bound="type[Solver]")

REGISTRY: dict[str, type[Solver]] = {}


def register(type_name: str) -> Callable[[Class], Class]:
    """Make the decorated class the solver of prototxt type `type_name`."""

    def decorate(solver_class: Class) -> Class:
        solver_class.type = type_name
        REGISTRY[type_name] = solver_class
        return solver_class

    return decorate


class SmoothedLoss:
    """The mean of the last `window` losses, updated in the original's way."""

    def __init__(self, window: int) -> None:
        self.value = 0.0
        self._window = window
        self._losses: list[float] = []
        self._added = 0

    def add(self, loss: float) -> None:
        """Take in the loss of one more iteration."""
        size = len(self._losses)
        if size < self._window:
            self._losses.append(loss)
            self.value = (self.value * size + loss) / (size + 1)
        else:
            place = self._added % self._window
            self.value += (loss - self._losses[place]) / self._window
            self._losses[place] = loss
        self._added += 1


class Solver(abc.ABC):
    """Trains a net, as a ``SolverParameter`` says.

    Attributes:
        param: the ``SolverParameter``.
        net: the net that is trained.
        test_nets: the nets that are tested; they share the weights of `net`.
        iter: the number of updates done.
        action: asked once an iteration, and before each pass of a test: "none", "stop" or "snapshot".
        on_iteration: called with the solver after each iteration.
        stop_on_nan: raise `SolverError` at a loss that is not finite, before the update; else a warning is logged once.
        requested_early_exit: whether `action` has asked to stop.
        histories: how many values an update keeps for each weight, from one iteration to the next.
    """

    type: ClassVar[str] = ""
    histories: ClassVar[int] = 1

    def __init__(self, solver: str | os.PathLike[str] | Any, solver_file: str | os.PathLike[str] | None = None) -> None:
        """Build the nets that `solver`, a prototxt file or a ``SolverParameter`` read from `solver_file`, names.

        Raises `SolverError` for settings that cannot be run, `FileAccessError` for a snapshot prefix that cannot be
        written, and what reading the files and building the nets raises.
        """
        if isinstance(solver, (str, os.PathLike)):
            solver, solver_file = prototxt.read_solver(os.fspath(solver)), solver
        self.param = caffe_pb2.SolverParameter()
        self.param.CopyFrom(solver)
        self._solver_file = os.fspath(solver_file) if solver_file else ""
        self.iter = 0
        self.action: Callable[[], str] = lambda: "none"
        self.on_iteration: Callable[[Solver], None] | None = None
        self.stop_on_nan = False
        self.requested_early_exit = False
        self._callbacks: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._smoothed_loss = SmoothedLoss(1)
        self._warned_of_nan = False
        self._restart_clock()
        self._settle_snapshot_prefix()
        logger.info("Initializing solver from parameters: \n%s", text_of(self.param))
        try:
            self.check_param()
        except SolverError as error:
            raise error.located(self._solver_file or "solver") from error.__cause__
        if self.param.snapshot:
            files.check_writable(self.param.snapshot_prefix)
        self._build_nets()
        self.history = history.History(self.net, self.histories)
        self._clear_diffs = Program(self.net.device)
        with self._clear_diffs.recording():
            self.net.clear_param_diffs()
        logger.info("Solver scaffolding done.")

    def _build_nets(self) -> None:
        if self.param.random_seed >= 0:
            random.set_random_seed(self.param.random_seed)
        self.net = nets.build_train_net(self.param, self._solver_file)
        self.test_nets = nets.build_test_nets(self.param, self._solver_file)

    # -- what a subclass fills in

    def check_param(self) -> None:
        """Raise `SolverError` for settings that cannot be run.  Called before anything is built."""
        param = self.param
        nets.check(param)
        for field in ("average_loss", "iter_size"):
            if getattr(param, field) < 1:
                raise SolverError(f"{field} must be at least 1. Received {getattr(param, field)}.")
        for field in ("display", "snapshot", "test_interval", "max_iter"):
            if getattr(param, field) < 0:
                raise SolverError(f"{field} must not be negative. Received {getattr(param, field)}.")
        if param.snapshot_format != param.BINARYPROTO:
            raise SolverError("snapshot_format HDF5 is not available. Use BINARYPROTO.")
        if param.snapshot and not param.HasField("snapshot_prefix"):
            raise SolverError("snapshot is set, but snapshot_prefix is missing. Set it to where snapshots shall go.")

    @property
    @abc.abstractmethod
    def current_step(self) -> int:
        """How many steps of the learning rate policy have been taken; part of the solver state."""

    @current_step.setter
    @abc.abstractmethod
    def current_step(self, step: int) -> None: ...

    @abc.abstractmethod
    def apply_update(self) -> None:
        """Update the params from their diffs, leave the update in the diffs, and count the iteration."""

    # -- training

    def solve(self, resume_file: str | os.PathLike[str] | None = None) -> None:
        """Train up to ``max_iter``, from the state in `resume_file` if there is one; snapshot and test at the end."""
        param = self.param
        if not param.HasField("max_iter"):
            where = self._solver_file or "solver"
            raise SolverError(f"{where}: max_iter is missing. Set it to the number of iterations to train.")
        if param.snapshot_after_train:
            files.check_writable(self.param.snapshot_prefix)
        logger.info("Solving %s", self.net.name)
        logger.info("Learning Rate Policy: %s", param.lr_policy)
        if resume_file is not None:
            logger.info("Restoring previous solver status from %s", os.fspath(resume_file))
            self.restore(resume_file)
        if self.iter >= param.max_iter:
            logger.warning("Nothing to train: the solver is at iteration %d, max_iter %d.", self.iter, param.max_iter)
        self.step(param.max_iter - self.iter)
        if param.snapshot_after_train and not self._due(param.snapshot):
            self.snapshot()
        if self.requested_early_exit:
            logger.info("Optimization stopped early.")
            return
        if self._due(param.display):
            self.net.run_forward()
            self._smoothed_loss.add(self.net.loss())
            logger.info("Iteration %d, loss = %.6g", self.iter, self.smoothed_loss)
        if self._due(param.test_interval):
            self.test_all()
        logger.info("Optimization Done.")

    def step(self, iterations: int) -> None:
        """Train for so many iterations, or until `action` asks to stop."""
        param = self.param
        stop = self.iter + iterations
        self.requested_early_exit = False
        self._smoothed_loss = SmoothedLoss(param.average_loss)
        self._restart_clock()
        while self.iter < stop:
            if self._due(param.test_interval) and (self.iter or param.test_initialization):
                self.test_all()
                if self.requested_early_exit:
                    break
            self._iterate()
            request = self.action()
            if self._due(param.snapshot) or request == "snapshot":
                self.snapshot()
            if self.on_iteration is not None:
                self.on_iteration(self)
            if request == "stop":
                self.requested_early_exit = True
                break

    def _iterate(self) -> None:
        for on_start, _ in self._callbacks:
            on_start()
        display = self._due(self.param.display)
        debug_info = display and self.param.debug_info
        if self.net.debug_info != debug_info:
            self.net.debug_info = debug_info
        self._clear_diffs.run()
        self._smoothed_loss.add(self._forward_backward())
        if display:
            self._log_iteration()
        for _, on_gradients_ready in self._callbacks:
            on_gradients_ready()
        self.apply_update()

    def _forward_backward(self) -> float:
        """Return the mean loss of ``iter_size`` passes, whose gradients add up in the params' diffs."""
        total = 0.0
        passes: int = self.param.iter_size
        for _ in range(passes):
            self.net.run_forward()
            self.net.run_backward()
            loss = self.net.loss()
            if not math.isfinite(loss):
                self._meet_nonfinite(loss)
            total += loss
        return total / passes

    def _meet_nonfinite(self, loss: float) -> None:
        if self._warned_of_nan and not self.stop_on_nan:
            return
        origin = first_nonfinite(self.net) or "no param or blob holds NaN or Inf"
        message = (
            f"Iteration {self.iter}: the loss is {loss:g}. In forward order, {origin}. "
            "Try a lower base_lr, clip_gradients, or check the input's scale."
        )
        if self.stop_on_nan:
            raise SolverError(message)
        logger.warning(message)
        self._warned_of_nan = True

    def _due(self, interval: int) -> bool:
        return bool(interval) and self.iter % interval == 0

    # -- testing

    def test_all(self) -> None:
        """Run each test net over its ``test_iter`` batches and log the mean of its outputs."""
        for index in range(len(self.test_nets)):
            if self.requested_early_exit:
                break
            self.test(index)

    def test(self, index: int = 0) -> dict[str, NDArray[np.float64]] | None:
        """Run test net `index` over its ``test_iter`` batches; log and return the mean of each output.

        Returns None if `action` asked to stop meanwhile.
        """
        logger.info("Iteration %d, Testing net (#%d)", self.iter, index)
        net, passes = self.test_nets[index], self.param.test_iter[index]
        net.share_with(self.net)
        totals = {name: np.zeros(net.blobs[name].shape) for name in net.outputs}
        loss = 0.0
        for _ in range(passes):
            self._answer_requests()
            if self.requested_early_exit:
                logger.info("Test interrupted.")
                return None
            net.run_forward()
            loss += net.loss() if self.param.test_compute_loss else 0.0
            for name, total in totals.items():
                total += net.blobs[name].data
        if self.param.test_compute_loss:
            logger.info("Test loss: %.6g", loss / passes)
        means = {name: total / passes for name, total in totals.items()}
        _log_outputs("Test", net, means)
        return means

    def _answer_requests(self) -> None:
        """Do what `action` asks for until it asks for nothing more."""
        while (request := self.action()) != "none":
            if request == "snapshot":
                self.snapshot()
            else:
                self.requested_early_exit = True

    # -- the log

    @property
    def smoothed_loss(self) -> float:
        """The loss, averaged over the last ``average_loss`` iterations."""
        return self._smoothed_loss.value

    def _log_iteration(self) -> None:
        seconds = time.perf_counter() - self._clock
        rate = (self.iter - self._clock_iter) / seconds
        logger.info(
            "Iteration %d (%.6g iter/s, %.6gs/%d iters), loss = %.6g",
            self.iter, rate, round(seconds, 3), self.param.display, self.smoothed_loss,
        )  # fmt: skip
        self._restart_clock()
        _log_outputs("Train", self.net, {name: self.net.blobs[name].data for name in self.net.outputs})

    def _restart_clock(self) -> None:
        self._clock = time.perf_counter()
        self._clock_iter = self.iter

    # -- snapshots

    def snapshot(self) -> None:
        """Write ``<snapshot_prefix>_iter_<iter>.caffemodel`` and the ``.solverstate`` that goes with it.

        Both are written whole or neither is.  Raises `FileAccessError`; older files of these names stay then.
        """
        model_file, state_file = self._snapshot_name(".caffemodel"), self._snapshot_name(".solverstate")
        with files.together() as write:
            logger.info("Snapshotting to binary proto file %s", model_file)
            caffemodel.write(model_file, self.net, self.param.snapshot_diff, write)
            logger.info("Snapshotting solver state to binary proto file %s", state_file)
            solverstate.write(state_file, self.history.state(self.iter, model_file, self.current_step), write)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on where the ``.solverstate`` file `path` was written: iteration, weights, history and place in the data.

        The weights are looked for where the state says, then beside it.  Raises `MissingFileError`, `WeightsError`, and
        `SolverError` if the history is that of another net or solver type; the solver is unchanged then.
        """
        path = os.fspath(path)
        state = self.history.read(path)
        if state.learned_net:
            self.net.copy_from(nets.locate(state.learned_net, path))
        logger.info("%sSolver: restoring history", self.type)
        self.history.restore(state.history)
        self.iter = state.iter
        self.current_step = state.current_step
        self.net.seek(self.iter * self.param.iter_size)
        for net, passes in zip(self.test_nets, self.param.test_iter, strict=True):
            net.seek(self._tests_before(self.iter) * passes)

    def _tests_before(self, iteration: int) -> int:
        """Return how many times a run from the start has tested when its update number `iteration` is done."""
        interval = self.param.test_interval
        first = 0 if self.param.test_initialization else interval
        return len(range(first, iteration, interval))

    def _snapshot_name(self, extension: str) -> str:
        return f"{self.param.snapshot_prefix}_iter_{self.iter}{extension}"

    def _settle_snapshot_prefix(self) -> None:
        """Fill in a missing ``snapshot_prefix``, or one that is a folder, from the solver file's name."""
        if not self._solver_file:
            return
        root, prefix = Path(self._solver_file).with_suffix(""), self.param.snapshot_prefix
        if not self.param.HasField("snapshot_prefix"):
            self.param.snapshot_prefix = str(root)
            logger.info("snapshot_prefix was not specified and is set to %s", root)
        elif os.path.isdir(prefix):  # noqa: PTH112 (Path.is_dir raises where a name is too long)
            self.param.snapshot_prefix = str(Path(prefix) / root.name)
            logger.info("snapshot_prefix was a directory and is replaced to %s", self.param.snapshot_prefix)

    # -- the rest of pycaffe's interface

    def add_callback(self, on_start: Callable[[], None], on_gradients_ready: Callable[[], None]) -> None:
        """Call `on_start` before each iteration and `on_gradients_ready` before each update."""
        self._callbacks.append((on_start, on_gradients_ready))

    def share_weights(self, net: Net) -> None:
        """Let `net` use the weights of the net that is trained."""
        net.share_with(self.net)

    def close(self) -> None:
        """Let go of the nets' threads and files."""
        for net in (self.net, *self.test_nets):
            net.close()


def _log_outputs(kind: str, net: Net, outputs: dict[str, NDArray[Any]]) -> None:
    """Log each element of `outputs`, with its share in the loss where it has one, in Caffe's words."""
    values = [(name, float(value)) for name, array in outputs.items() for value in array.flat]
    for index, (name, value) in enumerate(values):
        weight = net.blob_loss_weights[name]
        share = f" (* {weight:.6g} = {weight * value:.6g} loss)" if weight else ""
        logger.info("    %s net output #%d: %s = %.6g%s", kind, index, name, value, share)
