"""A transcoder in the form of other libraries, which subtract nothing before encoding and do not normalize
what they predict:

    features = rule(W_enc v + b_enc), prediction = features W_dec + b_dec + W_skip v

Here an SAE encodes y - b_in and predicts a normalized target t = codes W_dec + b_dec + W_skip (y - b_in).
With rows v = factor * y, features = factor * codes, and c the number that normalizes the target (1 if the
export takes normalized rows, and then gives them, too):

    b_enc  = factor (b_enc - W_enc b_in)         W_dec  = W_dec / (factor c)
    b_dec  = (b_dec - W_skip b_in) / c           W_skip = W_skip / (factor c)

Every number is computed in float64 and rounded once.
"""

import torch
from torch import Tensor

from ...common.errors import UsageError
from ...train import SAE
from .space import Space


def fold_transcoder(sae: SAE, space: Space) -> dict[str, Tensor]:
    """W_enc [F, D], b_enc [F], W_dec [F, O], b_dec [O], and W_skip [O, D] and threshold [F] if it has them.

    Raises:
        UsageError: the library would normalize the rows that it encodes, but not those of the skip
            connection.
    """
    assert sae.cfg.target is not None, "the caller has checked that"
    if space.step is not None and sae.cfg.target.skip:
        raise UsageError(
            f"SAE {sae.cfg.name} has a skip connection from rows that are each normalized by their own norm, "
            "and the library gives it the raw rows: use --normalized-input, to hand in rows that you "
            "normalize yourself"
        )
    own = {name: tensor.double() for name, tensor in sae.named_buffers() if tensor.is_floating_point()}
    scale = 1.0 if space.rows == "normalized" else sae.cfg.target.normalizer.factor or 1.0
    folded = {
        "W_enc": own["W_enc"],
        "b_enc": (own["b_enc"] - own["W_enc"] @ own["b_in"]) * space.factor,
        "W_dec": own["W_dec"] / (space.factor * scale),
        "b_dec": own["b_dec"] / scale,
    }
    if sae.cfg.target.skip:
        folded["b_dec"] = (own["b_dec"] - own["W_skip"] @ own["b_in"]) / scale
        folded["W_skip"] = own["W_skip"] / (space.factor * scale)
    if sae.threshold is not None:
        folded["threshold"] = (own["threshold"] * space.factor).expand(sae.cfg.num_latents)
    return {name: tensor.to(torch.float32) for name, tensor in folded.items()}
