"""Builds the CPU kernels and puts kernels/, proto/ and models/ inside the package; the rest is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parent
DATA = {
    "kernels": ("*.cu", "*.cuh", "host/*.cpp", "host/*.h"),
    "proto": ("*.proto", "*.desc"),
    "models": ("*/*",),
}


def load_host_build():
    """Load caffe_lite/devices/host_build.py without importing the package, whose requirements may be missing yet."""
    spec = importlib.util.spec_from_file_location("host_build", ROOT / "caffe_lite" / "devices" / "host_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


host_build = load_host_build()


class BuildPackage(build_py):
    """Copies the data folders of the top level into the package (an editable install leaves them where they are)."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # a module that was deleted must not be installed
        super().run()
        if not self.editable_mode:
            for source, target in self.data_pairs():
                self.mkpath(str(target.parent))
                shutil.copyfile(source, target)

    def data_pairs(self):
        package = pathlib.Path(self.build_lib) / "caffe_lite"
        for folder, patterns in DATA.items():
            for pattern in patterns:
                for path in sorted((ROOT / folder).glob(pattern)):
                    yield path, package / path.relative_to(ROOT)

    def get_outputs(self, include_bytecode=1):
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else outputs + [str(target) for _, target in self.data_pairs()]


class BuildHostLibraries(build_ext):
    """Compiles one library an instruction set; they are loaded with ctypes and belong to no Python version."""

    def get_ext_filename(self, fullname):
        return str(pathlib.Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext):
        instruction_set = ext.name.rpartition("_")[2]
        work = pathlib.Path(self.build_temp) / instruction_set
        try:
            host_build.build(ROOT / "kernels", instruction_set, work, pathlib.Path(self.get_ext_fullpath(ext.name)))
        except host_build.BuildError as error:
            raise SystemExit(f"error: {error}") from None


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 on this platform."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension(f"caffe_lite.devices.libhost_{name}", sources=[]) for name in host_build.instruction_sets()],
    cmdclass={"build_py": BuildPackage, "build_ext": BuildHostLibraries, "bdist_wheel": PlatformWheel},
)
