"""The error for pre-activations that are not finite, which is raised before anything is selected.

Legend: b rows of a block, F latents.
"""

from torch import Tensor

from ...common.errors import SaecacheError


class NonFiniteError(SaecacheError):
    """A pre-activation is NaN or too large for float32, so nothing can be selected. The message names it.

    Args:
        message: may say ``{latent}`` for the number of ``latent``.
        latent: as the process numbers it.
    """

    def __init__(self, message: str, latent: int | None = None) -> None:
        super().__init__(message if latent is None else message.format(latent=latent))
        self.template, self.latent = message, latent

    def among_all(self, first: int) -> "NonFiniteError":
        """The same for a process whose first latent is ``first`` of all."""
        return self if self.latent is None else NonFiniteError(self.template, first + self.latent)


def check_not_nan(first_row: int, pre: Tensor) -> None:
    """Check pre-activations ``pre`` [b, F], whose first row is ``first_row`` of the batch.

    Raises:
        NonFiniteError: one is NaN; the message names the first.
    """
    if bool(pre.sum().isnan()):  # one pass without a mask; infinities of both signs also give NaN
        places = pre.isnan().nonzero()
        if len(places):
            row, latent = places[0].cpu().tolist()
            message = f"the pre-activation of row {first_row + row}, latent {{latent}}, is NaN"
            raise NonFiniteError(message, latent)
