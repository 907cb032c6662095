"""ioc-node: one node of an Internet of Compute."""

__version__ = "0.1.0"
