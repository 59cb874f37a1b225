"""The loss terms of Mutual Choice, which is a variant and can be the first phase of Feature Choice. "Adaptive
Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders", sections 4.2, 4.4, appendix C.
"""

from collections.abc import Mapping

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from ....common.frozen import FrozenModel
from ...engine.schedule import in_steps
from ...pairs import Pairs
from ..losses.aux_zipf import AuxZipf
from ..losses.auxk import AuxK, auxk_terms
from ..losses.nfm import NFM, NFMInf, row_norms
from .gradients import train_selected
from .prevalence import initial_prevalence, observe_prevalence, prevalence, window_seen
from .rows import Batch
from .variant import Plan


class MutualTerms(FrozenModel):
    """loss = |x - reconstruction|² + AuxK + aux_zipf, plus NFM and NFM-inf where they are configured.

    A running mean of the prevalence decides which latents are dying; none is before a whole window was seen.
    """

    auxk: AuxK | None = AuxK()
    aux_zipf: AuxZipf | None = AuxZipf()
    nfm: NFM | None = None
    nfm_inf: NFMInf | None = None
    window_rows: PositiveInt | None = None  # half-life of the running mean; null: a twentieth of the run

    def problems_of_terms(self, plan: Plan) -> list[str]:
        """The reasons why these settings are impossible under this plan, and how to fix them."""
        rows = plan.num_steps * plan.step_rows
        if self.aux_zipf is not None and self.window_rows is not None and self.window_rows >= rows:
            return [
                f"window_rows={self.window_rows} is not reached in a run of {rows} rows, so aux_zipf "
                "has no effect: lower window_rows, or set aux_zipf to null"
            ]
        return []

    def initial_state_of_terms(self, plan: Plan) -> Mapping[str, Tensor]:
        """The initial running prevalence."""
        return initial_prevalence(plan.num_latents)

    def train_with_terms(self, batch: Batch, codes: Pairs, k: int) -> None:
        """Train on the selected ``codes`` (values above 0 only) of a rule with ``k`` codes per row."""
        terms = auxk_terms(self.auxk, k)
        if self.aux_zipf is not None and window_seen(batch, self.window_rows):
            every = batch.shards.gather(prevalence(batch.state))
            dying = batch.shards.among_own(self.aux_zipf.dying(every, k, batch.num_rows_of_all))
            if self.aux_zipf.without_dead:
                dying = dying[~batch.dead[dying]]
            terms.append(self.aux_zipf.term(dying, k))
        train_selected(batch, codes, terms)
        observe_prevalence(batch, codes, self.window_rows)
        last = batch.number_in_step == batch.batches_of_step - 1
        penalties = [penalty for penalty in (self.nfm, self.nfm_inf) if penalty is not None and last]
        if penalties:  # they depend on the weights only: once per step
            norms = row_norms(batch.parameters["W_dec"])
            for penalty in penalties:
                penalty(batch, norms)


class MutualPhase(MutualTerms):
    """Mutual Choice as the first phase of a run, before Feature Choice (section 4.4)."""

    steps: PositiveFloat = 0.8  # below 1 a fraction of the run, else steps; the paper gives no number

    def phase_steps(self, num_steps: int) -> int:
        """The number of steps of this phase in a run of ``num_steps``."""
        return in_steps(self.steps, num_steps)

    def problems(self, plan: Plan) -> list[str]:
        """The reasons why this phase is impossible under this plan, and how to fix them."""
        steps = self.phase_steps(plan.num_steps)
        found = self.problems_of_terms(plan)
        if steps >= plan.num_steps:
            found.append(
                f"mutual_choice.steps={self.steps:g} leaves Feature Choice none of {plan.num_steps} steps: "
                "lower it"
            )
        if steps == 0:
            found.append(
                f"mutual_choice.steps={self.steps:g} is less than one of {plan.num_steps} steps: raise it, "
                "or set mutual_choice to null"
            )
        return found
