"""taskmaster: a host supervisor whose jobs survive the death of any of its parts."""

__version__ = "0.1.0"
