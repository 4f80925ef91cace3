"""Tests of the layers, one file a family, as in `caffe_lite/layers`."""
