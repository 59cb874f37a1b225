"""Share the easy and hard encoders of the selection tests with the tests of the screens."""

from ....selection.conftest import factors, one_thread

__all__ = ["factors", "one_thread"]
