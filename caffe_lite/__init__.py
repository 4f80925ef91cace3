"""Caffe that installs with pip: the same prototxt, weights, blobs, commands and Python interface.

>>> import caffe_lite as caffe
>>> net = caffe.Net("lenet.prototxt", "lenet_iter_10000.caffemodel", caffe.TEST)
>>> net.blobs["data"].data[...] = images
>>> probabilities = net.forward()["prob"]
"""

from caffe_lite import errors, proto
from caffe_lite._version import __version__
from caffe_lite.blob import Blob
from caffe_lite.devices import set_mode_cpu, set_mode_gpu
from caffe_lite.errors import CaffeError
from caffe_lite.layers import layer_type_list
from caffe_lite.layers.python import Layer, set_python_layers
from caffe_lite.log import init_log
from caffe_lite.net import Net
from caffe_lite.proto.caffe_pb2 import TEST, TRAIN
from caffe_lite.random import set_random_seed
from caffe_lite.solvers import SGDSolver, get_solver

__all__ = [
    "TEST",
    "TRAIN",
    "Blob",
    "CaffeError",
    "Layer",
    "Net",
    "SGDSolver",
    "__version__",
    "errors",
    "get_solver",
    "init_log",
    "layer_type_list",
    "proto",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_python_layers",
    "set_random_seed",
]
