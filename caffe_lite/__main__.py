"""``python -m caffe_lite`` is the command ``caffe-lite``."""

import sys

from caffe_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
