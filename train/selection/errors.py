"""What can be wrong with pre-activations, found before anything is selected.

Legend: b rows of a block, F latents.
"""

from torch import Tensor

from ...common.errors import SaecacheError
from .bounds import RowNorms

LARGEST = 1e38  # leaves room for rounding and for the bounds


class NonFiniteError(SaecacheError):
    """A pre-activation is NaN, or too large for float32: nothing can be selected. The message says where."""


def check_not_nan(first_row: int, pre: Tensor) -> None:
    """Raise for the first NaN of ``pre`` [b, F], whose rows start at row ``first_row`` of the batch."""
    if bool(pre.sum().isnan()):  # one pass without a mask; the sum is also NaN for infinities of both signs
        places = pre.isnan().nonzero()
        if len(places):
            row, latent = places[0].tolist()
            raise NonFiniteError(f"the pre-activation of row {first_row + row}, latent {latent}, is NaN")


def check_finite_factors(x: RowNorms, W: RowNorms, b_enc: Tensor) -> None:
    """Raise unless all pre-activations of these rows and latents are sure to be finite in float32."""
    for values, what in (
        (x.norm, "row {} of the batch"),
        (W.norm, "the encoder weights of latent {}"),
        (b_enc, "the encoder bias of latent {}"),
    ):
        finite = values.isfinite()
        if not bool(finite.all()):
            place = int((~finite).nonzero()[0])
            raise NonFiniteError(f"pre-activations cannot be computed: {what.format(place)} is not finite")
    if len(x.norm) and len(W.norm):
        largest = float(x.norm.max()) * float(W.norm.max()) + float(b_enc.abs().max())
        if largest > LARGEST:
            raise NonFiniteError(
                f"pre-activations can overflow: they may reach {largest:.1e}, at most {LARGEST:.0e} is safe; "
                "scale the activations down, or look at why the encoder grew"
            )
