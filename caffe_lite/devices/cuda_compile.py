"""Compiles the kernels for one GPU architecture with nvcc, and keeps what it made.

A kernel file is pasted behind `dialect.cuh` under its own name and line numbers, so that a compile error points at the
real file.  The compiled file (a cubin) is kept in a folder of this user's alone, under a key of architecture, flags,
compiler version, dialect and source; it is written to a temporary file that is then renamed, and its checksum is
verified whenever it is read, so that two processes may share the folder and a damaged file costs one compilation.

Environment variables:
    CAFFE_LITE_NVCC    the compiler, in place of the first nvcc on the PATH, in CUDA_HOME or in /usr/local/cuda
    CAFFE_LITE_CACHE   the folder of compiled kernels, in place of caffe_lite in XDG_CACHE_HOME or in ~/.cache
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import re
import shutil
import stat
import subprocess
import tempfile

from caffe_lite.errors import DeviceError

FLAGS = ("-std=c++17", "-O3", "-cubin")
OLDEST, NEWEST = (7, 5), (12, 1)  # compute capabilities
DIGEST_BYTES = 32
FIRST_ERROR = re.compile(
    r"^(.+?)\((\d+)\): (?:catastrophic )?error: *(.+)$|^(.+?):(\d+):(?:\d+:)? (?:fatal )?error: *(.+)$", re.MULTILINE
)
UNKNOWN_ARCHITECTURE = re.compile(
    r"unsupported gpu architecture|not defined for option 'gpu-architecture'", re.IGNORECASE
)


def architecture(capability: tuple[int, int], gpu: str) -> str:
    """Return nvcc's name for a compute capability.  Raises `DeviceError` if the kernels are not made for it."""
    if not OLDEST <= capability <= NEWEST:
        raise DeviceError(
            f"{gpu} has compute capability {capability[0]}.{capability[1]}. "
            f"Expected {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}. Choose another GPU, or use the CPU."
        )
    return f"sm_{capability[0]}{capability[1]}"


class Compiler:
    """nvcc for one architecture, and the folder of what it has compiled.

    Args:
        architecture: as ``sm_90``.
        flags: added to `FLAGS`.

    Raises:
        DeviceError: there is no nvcc, it does not start, or the cache folder belongs to someone else.
    """

    def __init__(self, architecture: str, flags: tuple[str, ...] = ()) -> None:
        self.architecture = architecture
        self.nvcc = find_nvcc()
        self.version = _version(self.nvcc)
        found = re.search(r"release ([\d.]+)", self.version)
        self.release = f"CUDA {found.group(1)}" if found else "unknown version"
        self._flags = (*FLAGS, *flags, f"-arch={architecture}")
        self._folder = cache_folder()

    def cubin(self, path: pathlib.Path) -> bytes:
        """Return the kernel file `path` compiled.  Raises `DeviceError` with file and line if nvcc refuses it."""
        source = _pasted(path.with_name("dialect.cuh")) + _pasted(path)
        key = hashlib.sha256("\0".join((*self._flags, self.version, source)).encode()).hexdigest()
        kept = self._folder / f"{path.stem}-{self.architecture}-{key[:32]}.cubin"
        cubin = _read(kept)
        if cubin is None:
            cubin = self._compile(path, source)
            _write(kept, cubin)
        return cubin

    def _compile(self, path: pathlib.Path, source: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="caffe_lite-") as work:
            unit, target = pathlib.Path(work) / path.name, pathlib.Path(work) / "kernels.cubin"
            unit.write_text(source, encoding="utf-8")
            command = [self.nvcc, *self._flags, "-o", str(target), str(unit)]
            result = _run(command)
            if result.returncode == 0 and target.exists():
                return target.read_bytes()
            kept = self._folder / f"failed-{path.name}"
            with contextlib.suppress(OSError):
                shutil.copyfile(unit, kept)
            raise self._error(path, command, result, kept)

    def _error(
        self, path: pathlib.Path, command: list[str], result: subprocess.CompletedProcess[str], kept: pathlib.Path
    ) -> DeviceError:
        output = (result.stdout + result.stderr).strip()
        if UNKNOWN_ARCHITECTURE.search(output):
            return DeviceError(
                f"{self.nvcc} ({self.release}) cannot compile for {self.architecture}. "
                "Install a newer CUDA toolkit, or name its nvcc in CAFFE_LITE_NVCC."
            )
        found = FIRST_ERROR.search(output)
        file, line, what = [group for group in found.groups() if group is not None] if found else (None, None, None)
        where, what = (f"{file}:{line}", what) if found else (f"kernels/{path.name}", "nvcc failed")
        return DeviceError(
            f"{where}: the kernel does not compile: {what}. If you did not change it, install caffe_lite again; "
            f"the source is kept in {kept}.\nExit code {result.returncode} of: {' '.join(command)}\n{output}"
        )


def find_nvcc() -> str:
    """Return the path of nvcc.  Raises `DeviceError` if there is none."""
    named = os.environ.get("CAFFE_LITE_NVCC")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [named] if named else ["nvcc", *(str(pathlib.Path(home, "bin", "nvcc")) for home in homes if home)]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return found
    if named:
        raise DeviceError(f"CAFFE_LITE_NVCC names '{named}', which is no program. Set it to the path of nvcc.")
    raise DeviceError(
        "the CUDA compiler nvcc is neither on the PATH nor in CUDA_HOME nor in /usr/local/cuda. "
        "Install the CUDA toolkit, or set CUDA_HOME to the folder it lies in."
    )


def cache_folder() -> pathlib.Path:
    """Return the folder of compiled kernels, which only this user may enter, creating it where it is missing.

    Raises `DeviceError` if it cannot be had, or belongs to another user.
    """
    named = os.environ.get("CAFFE_LITE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser()
    folder = pathlib.Path(named) if named else pathlib.Path(base, "caffe_lite")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise DeviceError(
            f"{folder}: compiled kernels cannot be kept there: {error.strerror}. "
            "Set CAFFE_LITE_CACHE to a folder that you may write to."
        ) from error
    if status.st_uid != os.geteuid():
        raise DeviceError(
            f"{folder} belongs to another user, who could change the kernels kept there. "
            "Set CAFFE_LITE_CACHE to a folder of your own."
        )
    return folder


@functools.cache
def _version(nvcc: str) -> str:
    result = _run([nvcc, "--version"])
    if result.returncode:
        raise DeviceError(f"{nvcc} does not run (exit code {result.returncode}): {result.stderr.strip()}. Repair it.")
    return result.stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    # Flags that nvcc would take from the environment are not part of the key.
    environment = {name: value for name, value in os.environ.items() if not re.match("NVCC_(AP|PRE)PEND_FLAGS", name)}
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        raise DeviceError(f"{command[0]} does not start: {error.strerror}. Repair the CUDA toolkit.") from error


def _pasted(path: pathlib.Path) -> str:
    text = path.read_text(encoding="utf-8").replace("#pragma once\n", "\n")
    return f'#line 1 "kernels/{path.name}"\n{text}\n'


def _read(path: pathlib.Path) -> bytes | None:
    """Return what `_write` wrote, or None if it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, cubin = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return cubin if cubin and hashlib.sha256(cubin).digest() == digest else None


def _write(path: pathlib.Path, cubin: bytes) -> None:
    """Write checksum and content under a passing name, then rename; a full disk leaves the cache as it was."""
    with contextlib.suppress(OSError):
        handle, passing = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(cubin).digest() + cubin)
            pathlib.Path(passing).replace(path)
        except OSError:
            pathlib.Path(passing).unlink(missing_ok=True)
