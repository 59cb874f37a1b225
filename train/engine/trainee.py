"""One SAE in training: its tensors, its optimizer, and its training step.

Latents are dead after a number of rows (tokens) without activity, whatever the batch size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...common.errors import SaecacheError
from ..backends import huge_pages
from ..backends.threads import torch_on_one_thread
from ..latent_shards import agreed
from ..selection.errors import NonFiniteError
from ..variants.base.gradients import finish_gradients
from ..variants.base.rows import Batch, Outcome
from ..variants.base.variant import Plan, Variant
from .late import LateRead
from .metrics import Interval
from .optimizer import Optimizer, OptimizerConfig
from .reading import Reading, Source
from .row_sums import Owners
from .schedule import peak_learning_rate


class DivergedError(SaecacheError):
    """The loss or the gradient of a variant is not finite in batch ``number`` of the run (0-based).

    The parameters are those before that batch's step.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


@dataclass(frozen=True, kw_only=True)
class Applied:
    """An update that the host has not looked at yet.

    Attributes:
        outcome: of its step. number: of its last batch in the run.
        figures: the loss terms, the squared error and the gradient's norm, float64 [terms + 2].
    """

    outcome: Outcome
    number: int
    figures: LateRead


class Trainee:
    """A variant with its tensors. Only :meth:`update` changes the parameters.

    On a device where reading costs a synchronization, the host looks at the figures of an update when the
    next one is made, or when :meth:`settle` is called. Until then the device itself refuses to update with
    numbers that are not finite.
    """

    def __init__(
        self,
        variant: Variant,
        plan: Plan,
        seed: int,
        optimizer: OptimizerConfig,
        parameters: dict[str, Tensor],
        reading: Reading | None = None,
    ) -> None:
        """All tensors are of the latents of this process (``plan.shards``).

        Args:
            parameters: the initial W_enc, W_dec, b_enc and b_dec, of a transcoder also b_in and W_skip; the
                variant's own ones are added.
            reading: what it encodes and reconstructs; None: the rows of any one hook.
        """
        any_hook = Source(hook="", normalization=None, width=plan.d_model)
        self.reading = reading or Reading.autoencoder(any_hook)
        device = parameters["b_dec"].device
        self.variant, self.plan, self.seed = variant, plan, seed
        self.shards = plan.shards

        def own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            parts = {n: self.shards.part(t) if t.dim() else t for n, t in tensors.items()}
            return {n: (t if self.shards.is_whole else t.clone()).to(device) for n, t in parts.items()}

        self.parameters = parameters | own(variant.extra_parameters(plan))
        self.state = own(variant.initial_state(plan))
        for tensor in self.parameters.values():
            huge_pages.move(tensor)
        self.gradients = {n: huge_pages.zeros_like(t) for n, t in self.parameters.items()}
        self.optimizer_config = variant.optimizer.applied_to(optimizer)
        self.owners = Owners(plan)
        self.optimizer = Optimizer(
            self.optimizer_config,
            self.owners.part(self.parameters),
            unit_norm_decoder=variant.unit_norm_decoder and not plan.free_decoder,
            frozen=variant.frozen_parameters,
            shards=self.owners.latents,
        )
        self.peak_learning_rate = peak_learning_rate(self.optimizer_config, plan.num_latents)
        self.rows_since_active = torch.zeros(self.shards.count, dtype=torch.int64, device=device)
        self.interval = Interval(plan.num_latents, device)
        self._applied: Applied | None = None

    def start_at(self, tensors: Mapping[str, Tensor]) -> None:
        """Take values of a trained SAE, by the names of parameters and state, before the first step.

        They are of all latents: [F, ...], or [].
        """
        targets = {**self.parameters, **self.state}
        for name, tensor in tensors.items():
            targets[name].copy_(self.shards.part(tensor) if tensor.dim() else tensor)

    @property
    def name(self) -> str:
        return self.variant.run_name

    @torch_on_one_thread()
    def add_batch(
        self,
        x_centered: Tensor,
        target_centered: Tensor,
        step: int,
        dead_after_rows: int,
        *,
        number_in_step: int = 0,
    ) -> None:
        """Add the gradient of one of the ``plan.batches_of_step`` batches of a step.

        Args:
            x_centered: float32 [R, D], the rows to encode (``plan.own_rows`` of a batch), minus this SAE's
                ``b_dec`` (or ``b_in``).
            target_centered: float32 [R, O], the rows to reconstruct, minus ``b_dec``: the same tensor for an
                autoencoder. Both are as :func:`.reading.centered` lends them.

        Raises:
            DivergedError: a pre-activation is not finite, or the update before was not; the parameters did
                not change.
        """
        dead = dead_latents(self.rows_since_active, dead_after_rows)
        if number_in_step == 0:
            torch._foreach_zero_(list(self.gradients.values()))
            self._outcome = Outcome.empty(self.shards.count, x_centered.device)
        self._batch = batch = Batch(
            x_centered=x_centered,
            target_centered=target_centered,
            parameters=self.parameters,
            state=self.state,
            gradients=self.gradients,
            outcome=self._outcome,
            dead=dead,
            num_dead=LateRead(dead.sum()),
            number=step * self.plan.batches_of_step + number_in_step,
            seed=self.seed,
            num_steps=self.plan.num_steps,
            step_rows=self._step_rows(x_centered),
            batches_of_step=self.plan.batches_of_step,
            latent_shards=self.shards,
            row_group=self.plan.row_group,
            first_row=self.plan.own_rows.start,
            hook_widths=self.plan.hook_widths,
        )
        try:
            agreed(self.plan.row_group, lambda: self.variant.forward_backward(batch))
        except NonFiniteError as error:
            self.settle()
            raise DivergedError(str(error), batch.number) from error
        recorded = sum(len(rows) for rows in self._outcome.row_l0)
        expected = x_centered.shape[0] * (number_in_step + 1)
        assert recorded == expected, (
            f"{type(self.variant).__qualname__} recorded the codes of {recorded} of {expected} rows: its "
            "forward_backward must call batch.record for every part"
        )

    @torch_on_one_thread()
    def update(self, rate_factor: float) -> None:
        """Update the parameters with the gradients of all batches of the step.

        Raises:
            DivergedError: the loss or a gradient of this update, or of the one before, is NaN or infinite;
                the parameters have not changed since.
        """
        batch = self._batch
        del self._batch  # frees the memory of its rows
        summed = self.owners.sum_over_rows(batch, self.owners.part(self.parameters))
        finish_gradients(summed)
        outcome, norm = batch.outcome, self.optimizer.global_norm(summed.gradients)
        self.settle()
        figures = self.optimizer.step(
            summed.gradients,
            norm,
            self.peak_learning_rate * rate_factor,
            [*outcome.losses.values(), outcome.squared_error],
        )
        self._applied = Applied(outcome=outcome, number=batch.number, figures=LateRead(figures))
        if norm.device.type == "cpu":
            self.settle()
        self.owners.give_back(self.parameters, self.optimizer.parameters)
        self.variant.after_step(batch, self.optimizer)
        count_rows(self.rows_since_active, outcome.firing, batch.step_rows)

    def _step_rows(self, x_centered: Tensor) -> int:
        """The rows of a step, of all processes that share them."""
        alone = self.plan.row_group.size == 1
        return self.plan.batches_of_step * (len(x_centered) if alone else self.plan.batch_rows)

    def settle(self) -> None:
        """Look at the figures of the last update, and add them to the metrics of the interval.

        Raises:
            DivergedError: they are not finite; the parameters are those before that update.
        """
        applied, self._applied = self._applied, None
        if applied is None:
            return
        *losses, squared_error, norm = applied.figures.numbers()
        loss = torch.stack(losses).sum()
        if not (bool(loss.isfinite()) and bool(norm.isfinite())):
            raise DivergedError(
                f"the loss is {float(loss)} and the gradient's norm {float(norm)}", applied.number
            )
        named = dict(zip(applied.outcome.losses, losses, strict=True))
        self.interval.add(replace(applied.outcome, losses=named, squared_error=squared_error), norm)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors that training changes, by group and name (not copies): checkpoints hold them."""
        return {
            "parameters": self.parameters,
            "state": self.state,
            "optimizer": self.optimizer.tensors(),
            "interval": self.interval.tensors(),
            "dead": {"rows_since_active": self.rows_since_active},
        }


def count_rows(rows_since_active: Tensor, firing: Tensor, num_rows: int) -> None:
    """Add ``num_rows`` to ``rows_since_active`` (int64 [F]) in place; reset it where ``firing`` [F] > 0."""
    rows_since_active += num_rows
    rows_since_active.masked_fill_(firing > 0, 0)


def dead_latents(rows_since_active: Tensor, dead_after_rows: int) -> Tensor:
    """Whether each latent was inactive on the last ``dead_after_rows`` rows or more: bool [F]."""
    return torch.ge(rows_since_active, dead_after_rows)
