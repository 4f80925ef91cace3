"""Caffe's schema as Python classes: ``from caffe_lite.proto import caffe_pb2``."""
