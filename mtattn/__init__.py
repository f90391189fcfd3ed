"""mtattn: train a machine translator whose inside you can see."""

__version__ = "0.1.0"
