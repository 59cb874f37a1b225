"""The phase of a harvest that runs the model: text to tokens to rows to the writer."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch

from ...common.progress import progress_bar
from ...distributed.group import Group
from ...store import SaecacheError
from ...store.writing.helper import HelperWriter, SharedCacheWriter
from ..model.conditions import cuts_padding
from ..model.forward import ActivationReader, block_sequences, step_sequences
from ..model.language_model import LanguageModel
from ..plan import HarvestPlan
from .feed import Feed, Share
from .row_writer import HarvestStep, Progress, RowWriter
from .stages import run_overlapped
from .stream import TokenBatch, token_batches


def read_text(
    plan: HarvestPlan,
    model: LanguageModel,
    progress: Progress,
    writer: SharedCacheWriter | HelperWriter,
    group: Group,
    stop_asked: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Read from where ``progress`` stands to the target, or to the end of the text.

    Every process of ``group`` runs its share of the sequences. ``progress`` moves on with every commit.

    Raises:
        KeyboardInterrupt: ``stop_asked()`` in any process; what was read is committed.
        SaecacheError: out of memory.
    """
    assert progress.batch_size is not None
    context, device = plan.rule.context, plan.device
    block = block_sequences(device, context, progress.batch_size)
    reader = ActivationReader(model, plan.hooks, block, cut_padding=cuts_padding(progress.conditions))
    feed = Feed(
        group,
        first=writer.sequences_done,
        context=context,
        block=block,
        step=step_sequences(device, context, progress.batch_size),
        selection=plan.config.selection,
        stop_asked=stop_asked,
    )
    stream: Iterator[TokenBatch] = iter(())
    if group.is_first:
        stream = token_batches(plan, progress.cursor, progress.tokens, feed.round_sequences)
    wanted, resumed = plan.config.num_tokens, progress.tokens
    if resumed:
        say(f"continuing after {resumed:,} tokens")

    def read(share: Share) -> HarvestStep:
        if share.batch is None:
            return HarvestStep(share, {}, nullcontext())
        try:
            return HarvestStep(share, reader.rows(*share.batch), reader.beside())
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(plan, progress, bool(writer.sequences_done), error) from None

    def hand_out(rounds: Iterator[TokenBatch]) -> Iterator[Share]:
        return feed.shares(rounds, rows)

    hidden = not group.is_first
    with progress_bar("harvest", "tok", max(wanted, resumed), done=resumed, hidden=hidden) as bar:
        rows = RowWriter(writer, progress, plan.config, bar, group)
        try:
            run_overlapped(stream, hand_out, read, rows.write)
        except BaseException as error:
            if group.size == 1:
                rows.save()
            elif isinstance(error, Exception):
                feed.say_failed(error)
            raise
        rows.save()
    if feed.stopped:
        raise KeyboardInterrupt
    if progress.tokens < wanted:
        say(
            f"warning: the text ended after {progress.tokens:,} tokens, {wanted - progress.tokens:,} "
            f"short of num_tokens={wanted:,}; the cache holds what there is, no text is repeated"
        )


def _out_of_memory(
    plan: HarvestPlan, progress: Progress, something_is_kept: bool, error: BaseException
) -> SaecacheError:
    what = f"out of memory on {plan.device} with batch_size={progress.batch_size}"
    if not something_is_kept:
        return SaecacheError(f"{what}: lower it (--set batch_size=...) ({error})")
    return SaecacheError(
        f"{what}; what was done is kept. Free memory on the device and run the same command again, or "
        f"remove {plan.path} and lower batch_size ({error})"
    )
