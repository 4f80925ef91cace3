"""The version, alone: the build reads it before anything can be imported."""

__version__ = "0.1.0"
