"""What replaced activations cost at scored positions, summed by group of documents, and the figures of it.

Legend: n sequences, T context, V vocabulary, P scored positions, G groups of documents, R weightings of them.
"""

import numpy as np
import torch
from torch import Tensor

from ..distributed.group import Group
from .metrics.bootstrap import Floats, intervals_of, ratio, sum_by_group
from .results import LanguageModelMetrics
from .sequences import ScoredSequences
from .tree_sum import TreeSum

_POSITIONS_AT_ONCE = 1024  # float32 log-probabilities beside those of the clean model


class Losses:
    """Sums over the scored positions of each group of documents, float64 [G]: cross-entropy, KL to the clean
    model, and positions with the clean model's most likely token. They come batch by batch.
    """

    def __init__(self, num_groups: int, first_batch: int) -> None:
        self._sums = TreeSum(first_batch)
        self.ce, self.kl, self.agreeing = np.zeros((3, num_groups))  # once they are collected

    def add(self, ce_G: Floats, kl_G: Floats, agreeing_G: Floats) -> None:
        self._sums.add(torch.from_numpy(np.stack([ce_G, kl_G, agreeing_G])))

    def collect(self, group: Group) -> None:
        """Bring the sums of all processes of ``group`` to the first one."""
        self._sums.collect(group, 0)
        if (total := self._sums.total()) is not None:
            self.ce, self.kl, self.agreeing = total.numpy()


class Scorer:
    """Cross-entropy, KL and agreement at the scored positions of a batch, summed by group of documents in
    float64.
    """

    def __init__(self, clean_nTV: Tensor, batch: ScoredSequences) -> None:
        sequence_P, position_P = np.nonzero(batch.scored)
        self._place = torch.from_numpy(sequence_P), torch.from_numpy(position_P)
        self._target_P = torch.from_numpy(batch.ids[sequence_P, position_P + 1])
        self._group_P, self._num_groups = batch.group[sequence_P, position_P], batch.num_groups
        self._clean_PV = self._log_probabilities(clean_nTV, slice(None))
        self._first_P = self._clean_PV.argmax(1)

    def _log_probabilities(self, logits_nTV: Tensor, part: slice) -> Tensor:
        sequence, position = (index[part].to(logits_nTV.device) for index in self._place)
        return logits_nTV[sequence, position].float().log_softmax(-1)

    def clean(self) -> tuple[Floats, Floats, Floats]:
        """The clean model's cross-entropy, KL to itself (0) and agreement with itself: [G] each."""
        target = self._target_P.to(self._clean_PV.device)
        ce_P = -self._clean_PV.gather(1, target[:, None])[:, 0]
        return (
            self._by_group(ce_P),
            self._by_group(torch.zeros_like(ce_P)),
            self._by_group(torch.ones_like(ce_P)),
        )

    def against(self, logits_nTV: Tensor) -> tuple[Floats, Floats, Floats]:
        """With the replacement: cross-entropy, KL(clean ‖ with replacement), and agreement: [G] each."""
        ce, kl, agreeing = [], [], []
        for start in range(0, len(self._target_P), _POSITIONS_AT_ONCE):
            part = slice(start, start + _POSITIONS_AT_ONCE)
            clean = self._clean_PV[part]
            log_p = self._log_probabilities(logits_nTV, part).to(clean.device)
            ce.append(-log_p.gather(1, self._target_P[part].to(clean.device)[:, None])[:, 0])
            kl.append((clean.exp() * (clean - log_p)).sum(1))
            agreeing.append((log_p.argmax(1) == self._first_P[part]).float())
        sums = [self._by_group(torch.cat(values)) for values in (ce, kl, agreeing)]
        return sums[0], sums[1], sums[2]

    def _by_group(self, values_P: Tensor) -> Floats:
        return sum_by_group(self._group_P, values_P.cpu().double().numpy(), self._num_groups)


def metrics_of(
    losses: dict[str, Losses],
    tokens_G: Floats,
    weights_RG: Floats | None,
    *,
    num_sequences: int,
    mismatch: float,
) -> LanguageModelMetrics:
    """The figures of one SAE; ``losses`` are those of ``clean``, ``sae``, ``zero`` and ``mean``."""
    figures = {
        name: None if np.isnan(value[0]) else float(value[0])
        for name, value in _figures(losses, tokens_G, np.ones((1, len(tokens_G)))).items()
    }
    error = jackknife(losses["zero"].ce, losses["sae"].ce, losses["clean"].ce)
    return LanguageModelMetrics.model_validate(
        figures
        | {
            "num_tokens": int(tokens_G.sum()),
            "num_sequences": num_sequences,
            "ce_recovered_standard_error": error,
            "activation_mismatch": mismatch,
            "intervals": {} if weights_RG is None else intervals_of(_figures(losses, tokens_G, weights_RG)),
        }
    )


def _figures(losses: dict[str, Losses], tokens_G: Floats, weights_RG: Floats) -> dict[str, Floats]:
    """The figures of each weighting of the groups, float64 [R] each; NaN where a score has no meaning."""
    tokens_R = weights_RG @ tokens_G
    ce = {name: weights_RG @ loss.ce / tokens_R for name, loss in losses.items()}
    kl = {name: weights_RG @ loss.kl / tokens_R for name, loss in losses.items()}
    top1 = {name: weights_RG @ loss.agreeing / tokens_R for name, loss in losses.items()}
    replaced = ("sae", "zero", "mean")
    return {
        **{f"ce_{name}": ce[name] for name in ("clean", *replaced)},
        **{f"kl_{name}": kl[name] for name in replaced},
        **{f"top1_{name}": top1[name] for name in replaced},
        "ce_recovered": recovered(ce["zero"], ce["sae"], ce["clean"]),
        "ce_recovered_mean_ablation": recovered(ce["mean"], ce["sae"], ce["clean"]),
        "kl_score": recovered(kl["zero"], kl["sae"], np.zeros_like(tokens_R)),
        "kl_score_mean_ablation": recovered(kl["mean"], kl["sae"], np.zeros_like(tokens_R)),
    }


def recovered(ablated_R: Floats, sae_R: Floats, clean_R: Floats) -> Floats:
    """(ablated − sae) / (ablated − clean); NaN where the ablation does not raise the loss."""
    return ratio(ablated_R - sae_R, ablated_R - clean_R)


def jackknife(ablated_n: np.ndarray, sae_n: np.ndarray, clean_n: np.ndarray) -> float | None:
    """Standard error of the recovered share from sums by group, leaving out one group at a time."""
    n = len(clean_n)
    without = ablated_n.sum() - ablated_n, sae_n.sum() - sae_n, clean_n.sum() - clean_n
    if n < 2 or not (without[0] > without[2]).all():
        return None
    ratios = (without[0] - without[1]) / (without[0] - without[2])
    return float(np.sqrt((n - 1) / n * np.square(ratios - ratios.mean()).sum()))
