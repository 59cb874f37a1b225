"""Triton's kernels run in its interpreter here."""

from . import interpreter as interpreter
