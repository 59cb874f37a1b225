"""Which tokens a latent promotes and suppresses when its direction is read by the unembedding.

The effect of latent f on the logit of token v is d_f · (g ⊙ u_v), where d_f is the unit decoder direction
(less its mean where the final norm is a layer norm), g the weight of the final norm, and u_v the row of the
unembedding. It is the direct effect only: later layers change what a latent does, the more of them there are.
The scale of the norm, which depends on the token, and the bias, which does not depend on the latent, are left
out. Legend: F latents, D model width, V vocabulary, K tokens kept.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...distributed.group import ALONE, Group
from ...train.variants.losses.nfm import unit_rows

NUM_TOKENS = 10
_EFFECTS_AT_ONCE = 1 << 24


class Unembedding(Protocol):
    """The final norm and the output weights of a language model. ``harvest.unembedding`` reads them."""

    @property
    def weight(self) -> Tensor:
        """[V, D], with the weight of the final norm multiplied in."""
        ...

    @property
    def centers(self) -> bool:
        """Whether the final norm subtracts the mean over the coordinates."""
        ...

    @property
    def norm(self) -> str:
        """What is between the residual stream and the output weights, for the reader of the results."""
        ...


def find_logit_effects(
    W_dec: Tensor, unembedding: Unembedding, num_kept: int = NUM_TOKENS, group: Group = ALONE
) -> dict[str, NDArray[np.generic]]:
    """The tokens with the largest and the smallest effects of each latent, the strongest first.

    Returns:
        ``promoted`` and ``suppressed``: token ids int32 [F, K]; ``promoted_effect`` and
        ``suppressed_effect``: float32 [F, K]. Where several processes share the latents, this one's rows.
    """
    weight = unembedding.weight.to(W_dec)
    num_kept = min(num_kept, len(weight))
    found: dict[str, list[NDArray[np.generic]]] = {}
    for name in ("promoted", "suppressed"):
        found[name] = [np.zeros((0, num_kept), np.int32)]
        found[f"{name}_effect"] = [np.zeros((0, num_kept), np.float32)]
    blocks = torch.split(W_dec, max(1, _EFFECTS_AT_ONCE // len(weight)))
    for number in group.share(len(blocks)):
        direction = unit_rows(blocks[number])
        if unembedding.centers:
            direction = direction - direction.mean(1, keepdim=True)
        effect = direction @ weight.T
        for name, largest in (("promoted", True), ("suppressed", False)):
            best = effect.topk(num_kept, dim=1, largest=largest)
            found[name].append(best.indices.cpu().numpy().astype(np.int32))
            found[f"{name}_effect"].append(best.values.float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}
