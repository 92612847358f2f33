"""The version, which the package and every record that it writes give."""

__version__ = "0.1.0"
