"""Resampling: latents that have stopped firing restart in the direction of rows that are reconstructed badly.
Bricken et al. 2023, appendix "Neuron Resampling". There are no ghost gradients between resamplings.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from ....common.frozen import FrozenModel
from ...backends.plain.random_numbers import UNIT_BITS
from ...engine.optimizer import Optimizer, normalize_rows
from ...pairs import Pairs
from ..base.rows import Batch, RandomStream
from ..base.variant import Plan

STATE = "steps_since_active"


class Resampling(FrozenModel):
    """Every ``every_steps`` steps, ``times`` times, each idle latent gets the direction of a row.

    Rows are drawn with replacement; their probability is proportional to the square of their loss |x - x̂|².
    The latent's decoder row becomes the row's x - b_dec at norm 1 (a transcoder's: that of its target). Its
    encoder row has the direction of the row that is encoded, and ``encoder_scale`` times the mean norm of
    the other latents' encoder rows. Its bias and its Adam moments become 0. The paper draws from 819,200
    rows; we draw from the current batch, so large batches come closer to the paper.
    """

    every_steps: PositiveInt = 25_000
    times: PositiveInt = 4
    idle_steps: PositiveInt = 12_500  # a latent is idle if it was inactive for so many steps
    encoder_scale: PositiveFloat = 0.2

    def problems(self, plan: Plan) -> list[str]:
        """The reasons why these settings are impossible under this plan, and how to fix them."""
        found = []
        if self.every_steps >= plan.num_steps:
            found.append(
                f"resampling.every_steps={self.every_steps} is never reached in {plan.num_steps} steps: "
                "lower it, or set resampling to null"
            )
        if self.idle_steps > self.every_steps:
            found.append(
                f"resampling.idle_steps={self.idle_steps} must not exceed every_steps={self.every_steps}: "
                "no latent could be idle for so long at the first resampling"
            )
        return found

    def initial_state(self, num_latents: int) -> Mapping[str, Tensor]:
        """Steps since each latent was active, int64 [F]."""
        return {STATE: torch.zeros(num_latents, dtype=torch.int64)}

    def after_step(self, batch: Batch, optimizer: Optimizer, encode: Callable[[Batch], Pairs]) -> None:
        """Count idle steps, and resample if due. ``encode`` returns the codes of a part of the batch."""
        idle = batch.state[STATE]
        idle += 1
        idle.masked_fill_(batch.outcome.firing > 0, 0)
        done = batch.step + 1
        if done % self.every_steps or done // self.every_steps > self.times or done == batch.num_steps:
            return
        latents = (batch.shards.gather(idle) >= self.idle_steps).nonzero().flatten()
        if latents.numel() == 0:
            return
        own_loss = torch.cat([squared_error(part, encode(part)) for _, part in batch.split()])
        loss = torch.cat(batch.row_group.gather_rows(own_loss))
        uniform = batch.random_uniform(RandomStream.RESAMPLING, 0, 2, latents.numel())
        restart(batch, latents, draw_rows(loss, uniform), self.encoder_scale)
        optimizer.forget(latents)
        idle[batch.shards.among_own(latents)] = 0


def squared_error(part: Batch, codes: Pairs) -> Tensor:
    """|x - x̂|² of each row: float64 [B]."""
    error = part.shards.decode(codes, part.parameters["W_dec"]).sub_(part.target_centered)
    squares: Tensor = torch.linalg.vector_norm(error, dim=1).double().square()
    return squares


def draw_rows(loss: Tensor, uniform: Tensor) -> Tensor:
    """Draw rows with probability proportional to loss² (float64 [R]), with replacement: int64 [n].

    ``uniform`` (float32 [2, n]) are n numbers in (0, 1) of 23 bits, and n numbers for their next 23 bits.
    numpy adds up the weights, in one order whatever the device.
    """
    weights = loss.cpu().numpy()
    cumulative = np.cumsum(np.square(weights / max(weights.max(), 1e-300)))
    leading, following = uniform.cpu().double().numpy()
    points = leading + (following - 0.5) * 2.0**-UNIT_BITS
    rows = np.searchsorted(cumulative, points * cumulative[-1], side="right")
    return torch.from_numpy(np.minimum(rows, len(weights) - 1)).to(loss.device)


def restart(batch: Batch, latents: Tensor, rows: Tensor, encoder_scale: float) -> None:
    """Restart ``latents`` (int64 [n], of all F) in the directions of ``rows`` (int64 [n]) of the batch."""
    W_enc, W_dec, b_enc = (batch.parameters[name] for name in ("W_enc", "W_dec", "b_enc"))
    norms = batch.shards.gather(torch.linalg.vector_norm(W_enc, dim=1))
    others = torch.ones_like(norms, dtype=torch.bool)
    others[latents] = False
    norms = norms[others] if bool(others.any()) else norms
    own = batch.shards.among_own(latents)
    own_rows = rows[torch.isin(latents, own + batch.shards.first)]
    layers, numbers = batch.layers, torch.arange(len(own), device=own.device)
    encoded = layers.rows_by_layer(batch.rows_of_all(batch.x_centered, own_rows))
    directions = encoded[numbers * layers.num_layers + layers.layer_of(own)]
    decoded = batch.rows_of_all(batch.target_centered, own_rows)
    layers.clear_unwritten_of(own, decoded)
    normalize_rows(directions)
    normalize_rows(decoded)
    W_dec[own] = decoded
    W_enc[own] = directions * (encoder_scale * norms.mean())
    b_enc[own] = 0.0
