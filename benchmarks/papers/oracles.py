"""The best that codes of a given size can do on rows of known features, for the synthetic benchmark.

Legend: n rows, d width, F directions, k codes of a row.
"""

import torch
from torch import Tensor

from saecache.common.fvu import FVU
from saecache.evaluate.synthetic import GroundTruth


def measure_oracles(truth: GroundTruth, k: int, rows: int) -> dict[str, float]:
    """FVU of rows by their true codes, and by k codes a row along the true directions, by what chose them.

    An SAE's encoder is linear: with the true directions as its weights it ranks latents by the projections of
    the row. Their values are fitted to the row here, which no SAE does.
    """
    codes_nF, x_nd = next(iter(truth.blocks()))
    codes_nF, x_nd = codes_nF[:rows], x_nd[:rows]
    directions_Fd = truth.directions
    decoded = {
        "the true codes": codes_nF @ directions_Fd,
        f"the {k} largest true codes": _fit(x_nd, directions_Fd, codes_nF.abs().topk(k, dim=1).indices),
        f"{k} true directions, chosen by the row's projections": _fit(
            x_nd, directions_Fd, (x_nd @ directions_Fd.T).abs().topk(k, dim=1).indices
        ),
        f"{k} true directions, chosen one by one by what is left of the row": _fit(
            x_nd, directions_Fd, pursue(x_nd, directions_Fd, k)
        ),
    }
    found = {}
    for name, x_hat_nd in decoded.items():
        fvu = FVU()
        fvu.add(x_nd, x_hat_nd)
        found[name] = fvu.value() or 0.0
    return found


def pursue(x_nd: Tensor, directions_Fd: Tensor, k: int) -> Tensor:
    """The k directions of each row by orthogonal matching pursuit, int64 [n, k]."""
    chosen_nk = torch.zeros(len(x_nd), 0, dtype=torch.int64)
    left_nd = x_nd
    for _ in range(k):
        projection_nF = (left_nd @ directions_Fd.T).abs().scatter_(1, chosen_nk, -1.0)
        chosen_nk = torch.cat([chosen_nk, projection_nF.argmax(1, keepdim=True)], dim=1)
        left_nd = x_nd - _fit(x_nd, directions_Fd, chosen_nk)
    return chosen_nk


def _fit(x_nd: Tensor, directions_Fd: Tensor, chosen_nk: Tensor) -> Tensor:
    """The nearest combination of the chosen directions to each row, float32 [n, d]."""
    basis_nkd = directions_Fd[chosen_nk]
    gram_nkk = basis_nkd @ basis_nkd.mT + 1e-5 * torch.eye(chosen_nk.shape[1])
    value_nk1 = torch.linalg.solve(gram_nkk, basis_nkd @ x_nd[:, :, None])
    return (basis_nkd.mT @ value_nk1)[:, :, 0]
