"""L1: a price on the sum of a row's codes. Bricken et al. 2023; with decoder norms Conerly et al. 2024."""

from torch import Tensor

from ...backends.plain.products import total
from ...pairs import Pairs
from ..base.rows import Batch
from .penalty import Penalty


class L1(Penalty):
    """coefficient / R * sum over rows and latents of the code (which is never negative)."""

    def __call__(self, part: Batch, codes: Pairs, norms: Tensor | None = None) -> Tensor:
        """Add the term for the codes of ``part``.

        Args:
            codes: [B, F], values above 0 only.
            norms: of the decoder's rows, [F]: each code is multiplied by its latent's. None multiplies by
                nothing. What the norms themselves get of the gradient is left to the caller.

        Returns:
            d term / d code, [P].
        """
        weight = self.weight(part)
        d_value = (
            codes.value.new_full((len(codes),), weight) if norms is None else norms[codes.latent] * weight
        )
        part.outcome.add_loss("l1", total((codes.value * d_value).double()))
        return d_value
