"""The house rules that a program can check."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import caffe_lite
from caffe_lite import layers, resources

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "caffe_lite"
WITHOUT_KERNELS = {"base", "hdf5", "input", "memory_data", "python"}  # families that launch nothing
SHARED_KERNELS = {"image_data": "data"}  # families that launch another one's kernels
MODULE_LINES, KERNEL_LINES, FUNCTION_LINES = 450, 250, 60

in_repository = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="checks the repository")


def families():
    return sorted(module.name for module in pkgutil.iter_modules(layers.__path__))


@pytest.mark.parametrize("family", [name for name in families() if name != "base"])
def test_a_layer_family_has_a_kernel_file_and_a_test_of_its_name(family):
    assert (ROOT / "tests" / "layers" / f"test_{family}.py").exists()
    if family not in WITHOUT_KERNELS:
        assert resources.path(f"kernels/{SHARED_KERNELS.get(family, family)}.cu").exists()


@pytest.mark.parametrize("type_name", layers.layer_type_list())
def test_every_layer_says_what_it_computes_and_which_fields_it_reads(type_name):
    text = layers.REGISTRY[type_name].__doc__ or ""
    assert len(text.splitlines()) >= 5, f"{type_name} needs formula, shapes and prototxt fields in its docstring"


def test_the_public_names_exist_and_nothing_else_is_public():
    names = caffe_lite.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(caffe_lite, name) for name in names)
    modules = {module.name for module in pkgutil.iter_modules(caffe_lite.__path__)}
    assert {name for name in vars(caffe_lite) if not name.startswith("_")} - modules <= set(names)


@pytest.mark.parametrize("module", ["caffe_lite.devices", "caffe_lite.layers", "caffe_lite.solvers"])
def test_a_packages_all_names_exist(module):
    imported = importlib.import_module(module)
    assert all(hasattr(imported, name) for name in imported.__all__)


def test_the_changelog_opens_with_the_version():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1) == caffe_lite.__version__


@in_repository
def test_modules_and_kernel_files_stay_readable_in_one_sitting():
    long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for pattern, limit in (("caffe_lite/**/*.py", MODULE_LINES), ("kernels/*.cu", KERNEL_LINES))
        for path in ROOT.glob(pattern)
        if (lines := len(path.read_text().splitlines())) > limit
    ]
    assert not long


@in_repository
def test_functions_stay_short():
    long = []
    for path in PACKAGE.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not long


@in_repository
def test_every_public_function_and_class_has_a_docstring():
    bare = []
    for path in PACKAGE.glob("**/*.py"):
        tree = ast.parse(path.read_text())
        for node in [tree, *tree.body]:
            public = isinstance(node, ast.Module) or (
                isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            )
            if public and not ast.get_docstring(node):
                bare.append(f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}")
    assert not bare


def test_optional_libraries_are_not_imported_by_the_package_itself():
    optional = ("cv2", "h5py", "plyvel", "pycuda", "grpc_tools")
    code = f"import sys, caffe_lite; print([m for m in {optional} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
