"""What can be wrong with pre-activations, found before anything is selected.

Legend: b rows of a block, F latents.
"""

from torch import Tensor

from ...store.errors import SaecacheError
from .bounds import ErrorBounds


class NonFiniteError(SaecacheError):
    """A pre-activation is NaN, or too large for float32: nothing can be selected. The message says where."""


def check_not_nan(first_row: int, pre: Tensor) -> None:
    """Raise for the first NaN of ``pre`` [b, F], whose rows start at row ``first_row`` of the batch."""
    if bool(pre.sum().isnan()):  # one pass without a mask; the sum is also NaN for infinities of both signs
        places = pre.isnan().nonzero()
        if len(places):
            row, latent = places[0].tolist()
            raise NonFiniteError(f"the pre-activation of row {first_row + row}, latent {latent}, is NaN")


def check_finite_factors(bounds: ErrorBounds, b_enc: Tensor) -> None:
    """Raise unless all pre-activations of these rows and latents are sure to be finite in float32."""
    for values, what in (
        (bounds.slack, "row {} of the batch"),
        (bounds.norm, "the encoder weights of latent {}"),
        (b_enc, "the encoder bias of latent {}"),
    ):
        finite = values.isfinite()
        if not bool(finite.all()):
            place = int((~finite).nonzero()[0])
            raise NonFiniteError(f"pre-activations overflow: {what.format(place)} is not finite")
    if values.numel() and not bool((bounds.slack.max() * bounds.norm.max()).isfinite()):
        raise NonFiniteError("pre-activations overflow: the activations or the encoder weights are too large")
