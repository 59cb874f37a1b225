"""The batch size of a harvest, and on what else the last bits of its rows depend: alike in all processes."""

from ...common.errors import UsageError
from ...distributed.group import Group
from ...store import ActivationCache
from ...store.encoding.device import encodes_rows
from ...store.encoding.records import RecordLayout
from ..model.conditions import (
    check_conditions,
    condition_differences,
    cuts_padding,
    forward_conditions,
    forward_lengths,
)
from ..model.forward import choose_batch_size
from ..model.language_model import LanguageModel
from ..plan import HarvestPlan
from .extend import batch_size_of
from .row_writer import Progress


def settle_batch_size(
    plan: HarvestPlan, model: LanguageModel, progress: Progress, base: ActivationCache | None, group: Group
) -> None:
    """Set ``batch_size`` and ``conditions`` of ``progress``.

    The batch size is the configured one, or the interrupted run's, or that of the cache ``base`` that is
    extended, or the fastest one that the first process of ``group`` measures.

    Raises:
        UsageError: rows of this run would differ in their last bits from those of the last one, or from those
            of the first process.
    """
    configured, former = plan.config.batch_size, None if base is None else batch_size_of(base)
    known = (progress.batch_size or former) if configured == "auto" else configured
    batch_size = known or group.on_first(lambda: choose_batch_size(model, plan.hooks, plan.rule.context))
    conditions = {
        **forward_conditions(model, batch_size),
        **forward_lengths(_cut_padding(plan, model, progress, base)),
        "encoder": _choose_encoder(plan, model),
    }
    everywhere = group.gather_values(conditions)
    with group.together():
        if lines := condition_differences(everywhere[0], everywhere[group.rank]):
            raise UsageError(
                f"rows of process {group.rank} would differ in their last bits from those of process 0 "
                f"(there): {'; '.join(lines)}"
            )
        if progress.tokens:
            check_conditions(progress.conditions, conditions, plan.dtype, plan.path)
    progress.batch_size, progress.conditions = batch_size, conditions


def _cut_padding(
    plan: HarvestPlan, model: LanguageModel, progress: Progress, base: ActivationCache | None
) -> bool:
    """Whether forwards leave out padding: where there is much and it changes nothing, unless the rows so far
    were made with it.
    """
    if plan.rule.packing == "packed" or model.length_matters:
        return False
    if progress.tokens:
        return cuts_padding(progress.conditions)
    return base is None or cuts_padding(base.provenance.get("conditions"))


def _choose_encoder(plan: HarvestPlan, model: LanguageModel) -> str:
    """Who makes records of the rows. Both give the same bytes."""
    storage, outputs = plan.config.storage, model.outputs(plan.hooks).values()
    there = all(
        encodes_rows(x.device, x.dtype, RecordLayout(x.width, storage.dtype), storage.normalization == "unit")
        for x in outputs
    )
    return "gpu" if there else "cpu"
