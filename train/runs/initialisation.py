"""Initial parameters: a random unit-norm decoder, an encoder tied to it, a bias at the median of the rows.

Legend: D width of what is encoded, O width of what is reconstructed (D for an autoencoder), F latents.
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from ...common.errors import SaecacheError
from ..engine.optimizer import normalize_rows
from ..layer_blocks import LayerBlocks
from ..variants.base.variant import Plan
from .config import InitialisationConfig

DRAWN_ROWS = 4096  # drawn at a time: a multiple of 16, of which torch draws normal numbers together
MEDIAN_TOLERANCE = 1e-7  # the iteration ends with a step below this fraction of the mean distance
MEDIAN_ITERATIONS = 1000


def initial_parameters(
    plan: Plan,
    seed: int,
    b_dec: Tensor,
    config: InitialisationConfig | None = None,
    b_in: Tensor | None = None,
) -> dict[str, Tensor]:
    """Draw W_dec [F, O] with rows of norm 1; W_enc is ``encoder_norm`` times W_dec, or drawn independently.

    b_enc [F] is 0, b_dec [O] is as given, and so is a transcoder's b_in [D]; its W_skip [O, D] is 0. All are
    float32; training does not keep the two matrices tied. With ``decoder: zeros`` W_dec is 0 instead, so that
    training starts from the prediction b_dec (as sparsify's transcoders do). A cross-layer transcoder has
    W_enc [F, D / L], and rows of W_dec of norm 1 that are 0 for layers before the latent's. Processes that
    share the latents (``plan.group``) get their own rows of what one process would draw.
    """
    config = config or InitialisationConfig()
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device starts alike
    draw = orthogonal_rows if config.directions == "orthogonal" else isotropic_rows
    from_zeros, own = config.decoder == "zeros", plan.shards.own
    width = plan.d_encoder if from_zeros else plan.d_decoded
    W_dec = draw(plan.num_latents, width, generator, own).to(b_dec.device)
    tied = from_zeros or config.encoder == "tied"
    W_enc = W_dec if tied else draw(plan.num_latents, plan.d_encoder, generator, own).to(b_dec.device)
    if plan.num_layers > 1 and not from_zeros:
        LayerBlocks(plan.num_layers, plan.shards).clear_unwritten(W_dec)
        normalize_rows(W_dec)
    parameters = {
        "W_enc": W_enc * config.encoder_norm,
        "W_dec": W_dec.new_zeros(len(W_dec), plan.d_decoded) if from_zeros else W_dec,
        "b_enc": torch.zeros(len(W_dec), device=b_dec.device),
        "b_dec": b_dec.clone(),
    }
    if plan.d_target is not None:
        parameters["b_in"] = b_dec.new_zeros(plan.d_model) if b_in is None else b_in.clone()
    if plan.skip:
        parameters["W_skip"] = torch.zeros(plan.d_decoded, plan.d_model, device=b_dec.device)
    return parameters


def centre_of(rows: Tensor, kind: str) -> Tensor:
    """The centre of ``rows`` [n, D] as ``decoder_bias`` names it: float32 [D]."""
    return geometric_median(rows) if kind == "geometric_median" else rows.double().mean(0).float()


def isotropic_rows(num_rows: int, width: int, generator: torch.Generator, kept: slice) -> Tensor:
    """Draw rows of norm 1, all directions equally likely; return those ``kept``: float32 [n, width]."""
    size = DRAWN_ROWS if num_rows >= 2 * DRAWN_ROWS else num_rows  # the last set would be small otherwise
    stops = [*range(size, num_rows - size + 1, size), num_rows]
    drawn = (torch.randn(stop - start, width, generator=generator) for start, stop in pairwise([0, *stops]))
    return _unit_rows(drawn, kept)


def orthogonal_rows(num_rows: int, width: int, generator: torch.Generator, kept: slice) -> Tensor:
    """Draw rows of norm 1 in consecutive sets of ``width`` orthogonal ones; return those ``kept``.

    Each set is a uniform random rotation: Q of a Gaussian matrix, with the signs of R's diagonal (Mezzadri
    2007).
    """

    def rotation() -> Tensor:
        q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
        rotated: Tensor = (q * r.diagonal().sign()).float()
        return rotated

    return _unit_rows((rotation() for _ in range(0, num_rows, width)), kept)


def _unit_rows(drawn: Iterable[Tensor], kept: slice) -> Tensor:
    """The rows ``kept`` of all that are ``drawn`` set by set, with norm 1. All are drawn, some are held."""
    held, first = [], 0
    for rows in drawn:
        held.append(rows[max(0, kept.start - first) : max(0, kept.stop - first)].clone())
        first += len(rows)
    whole = held[0] if len(held) == 1 else torch.cat(held)
    normalize_rows(whole)
    return whole


def geometric_median(rows: Tensor) -> Tensor:
    """The point with the least sum of distances to ``rows`` [n, D]: float32 [D].

    Weiszfeld's iteration in float64, with the correction of Vardi & Zhang (2000) for an estimate that falls
    on a row. It ends with a step shorter than 1e-7 of the mean distance.

    Raises:
        SaecacheError: the iteration has not converged after 1000 steps.
    """
    x = rows.double()
    estimate = x.mean(0)
    for _ in range(MEDIAN_ITERATIONS):
        distance = torch.linalg.vector_norm(x - estimate, dim=1)
        spread = distance.mean()
        on_row = distance <= 1e-12 * spread
        weight = torch.where(on_row, 0.0, 1 / distance)
        if not bool(weight.any()):
            return estimate.float()
        towards = weight @ x / weight.sum()
        pull = torch.linalg.vector_norm((towards - estimate) * weight.sum())
        stay = min(1.0, float(on_row.sum() / pull)) if bool(on_row.any()) and float(pull) > 0 else 0.0
        updated = (1 - stay) * towards + stay * estimate
        if float(torch.linalg.vector_norm(updated - estimate)) <= MEDIAN_TOLERANCE * float(spread):
            return updated.float()
        estimate = updated
    raise SaecacheError(
        f"the geometric median of {x.shape[0]} rows did not converge in {MEDIAN_ITERATIONS} steps; "
        "set initialisation.decoder_bias=zeros"
    )
