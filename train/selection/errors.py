"""What can be wrong with pre-activations, found before anything is selected.

Legend: b rows of a block, F latents.
"""

from torch import Tensor

from ...common.errors import SaecacheError


class NonFiniteError(SaecacheError):
    """A pre-activation is NaN, or too large for float32: nothing can be selected. The message says where."""


def check_not_nan(first_row: int, pre: Tensor) -> None:
    """Raise for the first NaN of ``pre`` [b, F], whose rows start at row ``first_row`` of the batch."""
    if bool(pre.sum().isnan()):  # one pass without a mask; the sum is also NaN for infinities of both signs
        places = pre.isnan().nonzero()
        if len(places):
            row, latent = places[0].tolist()
            raise NonFiniteError(f"the pre-activation of row {first_row + row}, latent {latent}, is NaN")
