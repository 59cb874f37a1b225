"""Triton's kernels run in its interpreter here, too."""

from ..backends.triton import interpreter as interpreter
