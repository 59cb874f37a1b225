"""The encoders that are easy and hard to select from, for the screens too."""

from ....selection.conftest import factors, one_thread

__all__ = ["factors", "one_thread"]
