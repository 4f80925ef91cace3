"""Python layers: pycaffe's form, shapes, gradients, what is replayed around them, and their exceptions."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import TEST, TRAIN, build, input_layer, layer

import caffe_lite
from caffe_lite.errors import NetError, PythonLayerError, ShapeError
from caffe_lite.net import Net

CODE = '''
import caffe_lite as caffe
import numpy as np

calls = []

class Ten(caffe.Layer):
    def setup(self, bottom, top):
        calls.append("setup")

    def reshape(self, bottom, top):
        calls.append("reshape")
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        calls.append("forward")
        top[0].data[...] = 10 * bottom[0].data

    def backward(self, top, propagate_down, bottom):
        calls.append("backward")
        bottom[0].diff[...] = 10 * top[0].diff

class Product(caffe.Layer):
    """The product of two bottoms and a param, times a number."""
    def setup(self, bottom, top):
        self.factor = eval(self.param_str)["factor"]
        self.blobs.add_blob(*bottom[0].shape[1:])
        self.blobs[0].data[...] = 3

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.factor * bottom[0].data * bottom[1].data * self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        calls.append(list(propagate_down))
        a, b, weight = bottom[0].data, bottom[1].data, self.blobs[0].data
        self.blobs[0].diff[...] += self.factor * (top[0].diff * a * b).sum(axis=0)
        if propagate_down[0]:
            bottom[0].diff[...] = self.factor * top[0].diff * b * weight
        if propagate_down[1]:
            bottom[1].diff[...] = self.factor * top[0].diff * a * weight

class Phase(caffe.Layer):
    def reshape(self, bottom, top):
        top[0].reshape()

    def forward(self, bottom, top):
        top[0].data[()] = self.phase

class Growing(caffe.Layer):
    """A data layer whose top has one row more with each pass, as it finds out in forward."""
    def setup(self, bottom, top):
        self.rows = 0
        top[0].reshape(1, 2)

    def forward(self, bottom, top):
        self.rows += 1
        top[0].reshape(self.rows, 2)
        top[0].data[...] = self.rows

class Rows(caffe.Layer):
    """As many rows as its bottom, which it finds out in forward."""
    def setup(self, bottom, top):
        top[0].reshape(2, 3)

    def forward(self, bottom, top):
        top[0].reshape(*bottom[0].shape)
        top[0].data[...] = -bottom[0].data

class Half(caffe.Layer):
    def forward(self, bottom, top):
        bottom[0].data[...] /= 2

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] /= 2

class Silent(caffe.Layer):
    pass

class Faulty(caffe.Layer):
    def fail(self, where):
        if self.param_str == where:
            raise KeyError(f"in {where}")
    def setup(self, bottom, top):
        self.fail("setup")
    def reshape(self, bottom, top):
        self.fail("reshape")
        top[0].reshape(*bottom[0].shape)
    def forward(self, bottom, top):
        self.fail("forward")
    def backward(self, top, propagate_down, bottom):
        self.fail("backward")

class Refusing(caffe.Layer):
    def __init__(self, param):
        raise ValueError(param.name)

class Stopping(caffe.Layer):
    def forward(self, bottom, top):
        raise KeyboardInterrupt

class NotALayer:
    pass
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write the module `my_layers` into the current folder; give a function that returns it."""
    (tmp_path / "my_layers.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield lambda: sys.modules["my_layers"]
    for name in ("my_layers", "broken", "lacking"):
        sys.modules.pop(name, None)


def python(name: str, class_name: str, bottoms: str = "", tops: str = "", param_str: str = "", more: str = "") -> str:
    param = f'python_param {{ module: "my_layers" layer: "{class_name}" param_str: "{param_str}" }} {more}'
    return layer(name, "Python", bottoms, tops, param)


def chain() -> Net:
    """Return a net that multiplies by ten, by two on the tape, and by ten again."""
    double = layer("double", "Power", "one", "two", "power_param { scale: 2 }")
    text = input_layer(x=(4, 3)) + python("a", "Ten", "x", "one") + double + python("b", "Ten", "two", "y")
    return build("force_backward: true " + text)


# -- running


def test_python_layers_compute_between_recorded_layers(module: Any) -> None:
    net = chain()
    for value in (8, 9, -1):
        assert (net.forward(x=np.full((4, 3), value))["y"] == 200 * value).all()
        assert (net.backward(y=np.full((4, 3), value))["x"] == 200 * value).all()


def test_reshape_runs_once_before_each_forward_as_in_caffe(module: Any) -> None:
    net = chain()
    calls = module().calls
    assert calls == ["setup", "reshape"] * 2
    for _ in range(3):
        calls.clear()
        net.forward()
        net.backward()
        assert calls == ["reshape", "forward"] * 2 + ["backward"] * 2
    calls.clear()
    net.blobs["x"].reshape(5, 6)
    net.forward()
    assert calls == ["reshape", "forward"] * 2
    assert net.blobs["y"].shape == (5, 6)


def test_a_range_of_layers_runs_alone(module: Any) -> None:
    net = chain()
    net.forward(x=np.full((4, 3), 1))
    net.blobs["two"].data[...] = 7
    module().calls.clear()
    assert (net.forward(start="b")["y"] == 70).all()
    assert module().calls == ["reshape", "forward"]
    net.blobs["x"].reshape(2, 3)
    net.blobs["x"].data[...] = 3
    assert (net.forward(end="double")["two"] == 60).all()
    assert net.forward()["y"].shape == (2, 3)


def test_a_python_layer_learns_its_params(module: Any) -> None:
    text = input_layer(a=(4, 3), b=(4, 3)) + python("p", "Product", "a b", "y", "{'factor': 2}")
    net = build("force_backward: true " + text)
    a, b, dy = (np.random.default_rng(seed).standard_normal((4, 3)).astype(np.float32) for seed in range(3))
    np.testing.assert_allclose(net.forward(a=a, b=b)["y"], 6 * a * b, rtol=1e-6)
    diffs = net.backward(y=dy)
    np.testing.assert_allclose(diffs["a"], 6 * dy * b, rtol=1e-6)
    np.testing.assert_allclose(diffs["b"], 6 * dy * a, rtol=1e-6)
    np.testing.assert_allclose(net.params["p"][0].diff, 2 * (dy * a * b).sum(axis=0), rtol=1e-5)
    net.backward(y=dy)
    np.testing.assert_allclose(net.params["p"][0].diff, 4 * (dy * a * b).sum(axis=0), rtol=1e-5)


def test_propagate_down_tells_which_bottoms_want_a_gradient(module: Any) -> None:
    scale = layer("s", "InnerProduct", "a", "c", "inner_product_param { num_output: 3 }")
    product = python("p", "Product", "c b", "y", "{'factor': 2}", "loss_weight: 1")
    net = build(input_layer(a=(4, 3), b=(4, 3)) + scale + product)
    net.forward()
    net.backward()
    assert module().calls == [[True, False]]


def test_params_are_saved_and_loaded(module: Any) -> None:
    text = input_layer(a=(4, 3), b=(4, 3)) + python("p", "Product", "a b", "y", "{'factor': 2}")
    net = build(text)
    net.params["p"][0].data[...] = [5, 6, 7]
    net.save("net.caffemodel")
    other = build(text)
    other.copy_from("net.caffemodel")
    np.testing.assert_array_equal(other.forward(a=np.ones((4, 3)), b=np.ones((4, 3)))["y"][0], [10, 12, 14])


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_a_layer_knows_its_phase(module: Any, phase: int) -> None:
    assert build(python("p", "Phase", tops="phase"), phase=phase).forward()["phase"] == phase


def test_a_top_may_change_its_shape_in_forward(module: Any) -> None:
    double = layer("double", "Power", "x", "y", "power_param { scale: 2 }")
    net = build(python("g", "Growing", tops="x") + double)
    for rows in range(1, 6):
        np.testing.assert_array_equal(net.forward()["y"], np.full((rows, 2), 2 * rows))


def test_layers_after_a_change_of_shape_wait_for_the_python_layer(module: Any) -> None:
    """An Eltwise of the input and a Python layer's top fits only after that has run."""
    net = build(input_layer(x=(2, 3)) + python("r", "Rows", "x", "y") + layer("sum", "Eltwise", "x y", "z"))
    for rows in (2, 5, 5, 1):
        assert not net.forward(x=np.full((rows, 3), 4))["z"].any()
        assert net.blobs["z"].shape == (rows, 3)


def test_a_net_works_again_after_shapes_that_do_not_fit(module: Any) -> None:
    text = input_layer(x=(2, 3), other=(2, 3)) + python("r", "Rows", "x", "y")
    net = build(text + layer("sum", "Eltwise", "other y", "z"))
    net.forward()
    with pytest.raises(ShapeError, match=r"layer 'sum' \(Eltwise\)"):
        net.forward(x=np.zeros((4, 3)), other=np.zeros((2, 3)))
    assert net.forward(x=np.ones((4, 3)), other=np.ones((4, 3)))["z"].shape == (4, 3)


def test_a_python_layer_may_work_in_place(module: Any) -> None:
    net = build(
        "force_backward: true " + input_layer(w=(2,)) + layer("c", "Power", "w", "x") + python("h", "Half", "x", "x")
    )
    assert (net.forward(w=np.full(2, 6))["x"] == 3).all()
    assert (net.backward(x=np.full(2, 4))["w"] == 2).all()


def test_debug_info_runs_python_layers_too(module: Any) -> None:
    net = chain()
    net.debug_info = True
    assert (net.forward(x=np.full((4, 3), 2))["y"] == 400).all()
    assert (net.backward(y=np.full((4, 3), 2))["x"] == 400).all()


def test_the_users_attributes_are_reached_through_the_nets_layer(module: Any) -> None:
    net = build(python("g", "Growing", tops="x"))
    assert net.layers[0].type == "Python"
    assert net.layers[0].rows == 0
    net.layers[0].rows = 4
    assert net.forward()["x"].shape == (5, 2)
    assert isinstance(net.layers[0].instance, caffe_lite.Layer)
    with pytest.raises(AttributeError, match="no attribute 'columns'"):
        _ = net.layers[0].columns


def test_the_base_class_stands_alone() -> None:
    class Mine(caffe_lite.Layer):
        pass

    assert (Mine().phase, Mine(None).param_str, Mine.type) == (0, "", "Python")


# -- complaints


@pytest.mark.parametrize("where", ["setup", "reshape", "forward", "backward"])
def test_an_exception_names_the_layer_and_is_chained_with_its_traceback(module: Any, where: str) -> None:
    text = "force_backward: true " + input_layer(x=(2,)) + python("f", "Faulty", "x", "y", where)
    with pytest.raises(PythonLayerError) as caught:
        net = build(text)
        net.forward()
        net.backward()
    message = str(caught.value)
    assert message.startswith(f"layer 'f' (Python): my_layers.Faulty.{where} raised KeyError: 'in {where}' (")
    assert "my_layers.py:" in message
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError)
    functions = [frame.name for frame in traceback.extract_tb(cause.__traceback__)]
    assert functions[-2:] == [where, "fail"]
    assert isinstance(caught.value, RuntimeError)


def test_a_net_works_again_after_an_exception(module: Any) -> None:
    net = build(input_layer(x=(2,)) + python("f", "Faulty", "x", "y", "forward"))
    for _ in range(2):
        with pytest.raises(PythonLayerError):
            net.forward()
    net.layers[1].param_str = ""
    net.forward()


def test_an_exception_of_the_constructor_is_chained(module: Any) -> None:
    with pytest.raises(
        PythonLayerError, match=r"layer 'r' \(Python\): my_layers.Refusing.__init__ raised ValueError: r"
    ):
        build(python("r", "Refusing", tops="x"))


def test_an_interrupt_passes_as_it_is(module: Any) -> None:
    net = build(python("s", "Stopping", tops="x"))
    with pytest.raises(KeyboardInterrupt):
        net.forward()


def test_a_class_without_forward_says_so(module: Any) -> None:
    net = build(python("s", "Silent", tops="x"))
    with pytest.raises(PythonLayerError, match=r"Silent.forward raised NotImplementedError: Silent has no forward"):
        net.forward()


def test_a_class_without_backward_says_so_when_a_gradient_is_needed(module: Any) -> None:
    net = build("force_backward: true " + input_layer(x=(2, 3)) + python("r", "Rows", "x", "y"))
    net.forward()
    with pytest.raises(NetError, match=r"layer 'r' \(Python\): this layer has no backward"):
        net.backward()


def test_python_layers_can_be_forbidden(module: Any) -> None:
    caffe_lite.set_python_layers(False)
    try:
        with pytest.raises(
            NetError, match=r"layer 'p' \(Python\): Python layers are forbidden.*code of module 'my_layers'"
        ):
            build(python("p", "Phase", tops="phase"))
        assert "my_layers" not in sys.modules
    finally:
        caffe_lite.set_python_layers(True)
    build(python("p", "Phase", tops="phase"))


def broken(module_name: str, class_name: str = "A") -> Net:
    return build(layer("p", "Python", "", "x", f'python_param {{ module: "{module_name}" layer: "{class_name}" }}'))


def test_a_missing_module_says_where_to_put_it(module: Any) -> None:
    with pytest.raises(NetError, match=r"there is no module 'nowhere.layers'. Put its folder on PYTHONPATH"):
        broken("nowhere.layers")


def test_a_module_that_fails_is_chained(module: Any) -> None:
    Path("broken.py").write_text("\n1 / 0\n")
    with pytest.raises(
        PythonLayerError, match=r"importing module 'broken' raised ZeroDivisionError: .*broken.py:2"
    ) as caught:
        broken("broken")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_module_that_lacks_another_is_chained(module: Any) -> None:
    Path("lacking.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(
        PythonLayerError, match="importing module 'lacking' raised ModuleNotFoundError: No module named"
    ):
        broken("lacking")


@pytest.mark.parametrize(
    ("class_name", "message"),
    [
        ("Tem", "module 'my_layers' has no class 'Tem'. Did you mean 'Ten'"),
        ("Nothing", "module 'my_layers' has no class 'Nothing'. Its Python layers are Faulty, Growing, "),
        ("NotALayer", "'my_layers.NotALayer' is not a Python layer. Derive the class from caffe_lite.Layer"),
        ("calls", "'my_layers.calls' is not a Python layer"),
        ("", "python_param: module and layer must both be given"),
    ],
)
def test_a_class_that_cannot_be_used_is_an_error(module: Any, class_name: str, message: str) -> None:
    with pytest.raises(NetError, match=message):
        broken("my_layers", class_name)
