"""The phase of a harvest after the last row: shuffled arrays, each process some shards, then the manifest."""

from collections.abc import Callable
from pathlib import Path

from ..common.progress import progress_bar
from ..distributed.group import Group
from ..store import Manifest
from ..store.remote.opening import read_manifest_at
from ..store.writing.helper import HelperWriter, SharedCacheWriter
from .facts import provenance_facts
from .joint_writer import journal_of_first
from .plan import HarvestPlan
from .row_writer import Progress


def finish(
    plan: HarvestPlan,
    place: Path | str,
    progress: Progress,
    writer: SharedCacheWriter | HelperWriter,
    group: Group,
    stop_asked: Callable[[], bool],
) -> Manifest:
    """Shuffle and write the cache of ``place``, all processes of ``group`` together; the first one commits
    ``progress`` before.

    Raises:
        KeyboardInterrupt: ``stop_asked()`` in any process; shards that are finished stay so.
    """
    with group.together():
        if isinstance(writer, SharedCacheWriter):
            writer.commit(progress.to_json())
    with progress_bar("shuffle", "B", hidden=not group.is_first) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        def show_and_stop(done: int, total: int) -> None:
            show(done, total)
            if stop_asked():
                raise KeyboardInterrupt

        if group.size > 1 and group.on_first(lambda: _shards_are_missing(writer)):
            journal = journal_of_first(writer, group)
            if isinstance(writer, SharedCacheWriter):
                writer.run_share(group, stop_asked, show)
            else:
                writer.run_share(journal, group, stop_asked)
        manifest = None
        with group.together():
            if isinstance(writer, SharedCacheWriter):
                manifest = writer.finalize(
                    counts=progress.counts(plan.config.num_tokens),
                    provenance=provenance_facts(plan, progress, group.size),
                    on_progress=show_and_stop if group.size == 1 else show,
                )
        return manifest or read_manifest_at(place)


def _shards_are_missing(writer: SharedCacheWriter | HelperWriter) -> bool:
    return isinstance(writer, SharedCacheWriter) and not writer.is_published
