"""TopK: the k largest pre-activations of each row."""

import torch

from ..kernels import Blocks
from ..pairs import Pairs


def select_per_row(blocks: Blocks, num_rows: int, num_latents: int, k: int, state: object = None) -> Pairs:
    """The ``k`` largest of each row; the lowest latent first among equals."""
    latents, values = [], []
    for _, pre in blocks():
        order = torch.sort(pre, dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
        latents.append(order)
        values.append(pre.gather(1, order))
    row_ptr = torch.arange(0, num_rows * k + 1, k)
    latent, value = torch.cat(latents).flatten(), torch.cat(values).flatten()
    return Pairs(row_ptr=row_ptr.to(latent.device), latent=latent, value=value, num_latents=num_latents)
