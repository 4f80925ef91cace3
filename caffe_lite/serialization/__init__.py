"""Caffe's files: weights, solver states, blobs, and the upgrade of messages from before Caffe 1.0."""
