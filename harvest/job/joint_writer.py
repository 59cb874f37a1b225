"""The writer of a harvest, in every process: the first one's is the cache's, the others help it."""

from collections.abc import Mapping

from ...distributed.group import Group
from ...store.remote.places.failures import RemoteChangedError
from ...store.writing.helper import HelperWriter, SharedCacheWriter
from ...store.writing.journal import Journal
from ..plan import HarvestPlan
from .destination import Destination


def open_writer(
    plan: HarvestPlan, destination: Destination, widths: Mapping[str, int], group: Group
) -> SharedCacheWriter | HelperWriter:
    """The writer of this process, which goes on from the last commit. ``widths`` are those of the hooks.

    Raises:
        RemoteChangedError: another run has committed since this one has read how far the harvest is.
        and what :class:`.SharedCacheWriter` and :class:`.HelperWriter` raise.
    """
    config, writer = plan.config, None
    with group.together():
        if group.is_first:
            writer = SharedCacheWriter(
                plan.path,
                hooks=widths,
                context=plan.rule.context,
                identity=plan.identity,
                seed=config.seed,
                heldout_fraction=plan.heldout_fraction,
                storage=config.storage,
                planned_sequences=plan.full_sequences,
                delivery=destination.delivery,
                shared=group.size > 1,
                pieces=destination.pieces,
            )
    try:
        journal = journal_of_first(writer, group)
        sequences = -(-plan.full_sequences // group.size)
        with group.together():
            if writer is not None:
                _check_nobody_else_went_on(plan, destination, writer)
            return writer or HelperWriter(
                plan.path,
                group.rank,
                journal,
                config.storage,
                sequences,
                destination.delivery,
                destination.pieces,
            )
    except BaseException:
        if writer is not None:
            writer.close()
        raise


def journal_of_first(writer: SharedCacheWriter | HelperWriter | None, group: Group) -> Journal:
    """The last commit, in all processes of ``group``."""
    own = writer.journal if isinstance(writer, SharedCacheWriter) else None
    if own is not None and group.size == 1:
        return own
    return Journal.model_validate(
        group.gather_values(None if own is None else own.model_dump(mode="json"))[0]
    )


def _check_nobody_else_went_on(
    plan: HarvestPlan, destination: Destination, writer: SharedCacheWriter
) -> None:
    before = {} if plan.existing is None else plan.existing.progress
    if destination.pieces is not None and writer.progress != before:
        raise RemoteChangedError(
            f"another run of this harvest was still going on with what is at {destination.pieces}: "
            "it stops now; run the same command again"
        )
