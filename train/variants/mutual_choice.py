"""Mutual Choice keeps the M = k * B largest affinities of a batch. "Adaptive Sparse Allocation with Mutual
Choice & Feature Choice Sparse Autoencoders", sections 3.1, 4.1, 4.2 and appendix C.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ..pairs import Pairs
from .base.batch_rule import BatchRule
from .base.mutual import MutualTerms
from .base.rows import Batch
from .base.variant import Plan


class MutualChoice(BatchRule, MutualTerms):
    """BatchTopK's rule with loss = |x - reconstruction|² + AuxK + aux_zipf (+ NFM + NFM-inf).

    Affinities are ranked by value, and only those above 0 are kept, as in sections 3.1, 4.1 and appendix H; a
    caption speaks of magnitude instead. The paper gives no coefficients of the auxiliary losses; see
    :class:`AuxZipf`.
    """

    kind: Literal["mutual_choice"] = "mutual_choice"

    def problems(self, plan: Plan) -> list[str]:
        return super().problems(plan) + self.problems_of_terms(plan)

    def initial_state(self, plan: Plan) -> Mapping[str, Tensor]:
        return {**super().initial_state(plan), **self.initial_state_of_terms(plan)}

    def train(self, batch: Batch, codes: Pairs) -> None:
        self.train_with_terms(batch, codes, self.k)
