"""Measures one SAE on rows of a cache: fidelity, codes, density, and what can be seen of its latents.

Legend: B rows of a block, D width of what is encoded, O width of what is reconstructed, F latents.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.errors import UsageError
from ..common.progress import progress_bar
from ..distributed.group import ALONE, Group
from ..store import ActivationCache
from ..train import SAE, Pairs
from ..train.sae_hooks import decoded_hooks, encoded_hooks, name_of, read_hooks_side_by_side
from .config import EvaluateConfig
from .hook_measures import HookStreams
from .latents.codes import CodeSpill, StoredCodes, collect_codes
from .latents.collect import CollectSettings, Directions, collect_latents, compare_directions
from .latents.contexts import DecodeToken, sample_latents
from .latents.logits import Unembedding
from .latents.rows import LatentRows
from .latents.sample import describe_latents
from .latents.table import Latents
from .metrics import CodeStream, ReconstructionStream, density_curve, l0_histogram
from .metrics.collapse import measure_collapse
from .metrics.progressive import ProgressiveStream
from .metrics.zipf import find_dying, fit_zipf
from .results import SaeResult
from .rows import MeasuredRows, RowGroups, read_blocks

_MORE_ROWS = 4096  # encoded at once


@dataclass(frozen=True, kw_only=True)
class LatentView:
    """What latents are looked at with.

    Attributes:
        rows: the rows, with the text around them.
        folder: where codes are kept for the time being.
        unembedding: for logit effects; None where there is no language model.
    """

    rows: LatentRows
    folder: Path
    decode_token: DecodeToken
    unembedding: Unembedding | None = None


class RowMeasures:
    """What is added up of one SAE while rows stream by."""

    def __init__(
        self, sae: SAE, name: str, num_groups: int, first_block: int = 0, block_0: "SaeRows | None" = None
    ) -> None:
        """``first_block`` and ``block_0`` are as for :class:`.ReconstructionStream`."""
        target, raw = (None, None) if block_0 is None else (block_0.target, block_0.raw)
        both = () if block_0 is None else (block_0.target, block_0.raw)
        self._sae, self._name = sae, name
        self._has_skip = any(part.skip for part in sae.cfg.predicted)
        self.normalized = ReconstructionStream(num_groups, first_block=first_block, block_0_BD=target)
        self.raw = ReconstructionStream(num_groups, first_block=first_block, block_0_BD=raw)
        self.codes = CodeStream(sae.cfg.num_latents, num_groups, first_block=first_block)
        self.progressive = ProgressiveStream(sae, first_block=first_block, block_0_BD=target)
        self.by_hook = HookStreams(sae, num_groups, first_block=first_block, block_0=both)

    def update(self, read: "SaeRows", pairs: Pairs, group_B: Tensor) -> None:
        """Add a block: rows with their codes, and the group of documents of each.

        Raises:
            UsageError: the reconstruction is not finite.
        """
        sae = self._sae
        decoded_BO = sae.predict(pairs, read.x)
        if not bool(torch.isfinite(decoded_BO).all()):
            raise UsageError(
                f"SAE {self._name} reconstructs values that are not finite: its weights are damaged"
            )
        self.normalized.update(read.target, decoded_BO, group_B)
        raw_decoded_BO = sae.to_raw(decoded_BO, read.removed)
        self.raw.update(read.raw, raw_decoded_BO, group_B)
        self.by_hook.update(read.target, decoded_BO, read.raw, raw_decoded_BO, group_B)
        self.codes.update(pairs, group_B)
        without_codes_BO = decoded_BO - sae.decode(pairs) + sae.b_dec if self._has_skip else None
        self.progressive.update(read.target, pairs, without_codes_BO)

    def collect(self, group: Group, owner: int) -> None:
        """Bring what all processes of ``group`` have added up to process ``owner``."""
        for stream in (self.normalized, self.raw, self.codes, self.progressive, self.by_hook):
            stream.collect(group, owner)


@dataclass(frozen=True, kw_only=True)
class MeasuredSae:
    """An SAE whose rows have streamed by, and the codes of its latents, which :meth:`describe` looks at."""

    sae: SAE
    name: str
    measures: RowMeasures
    codes: StoredCodes | None = None
    directions: Directions | None = None

    def describe(
        self, cache: ActivationCache, view: LatentView | None, settings: EvaluateConfig
    ) -> tuple[SaeResult, Latents | None]:
        """The figures; the caller fills in ``sae_dir`` and ``language_model``. And all latents, with a
        ``view``.
        """
        cfg, codes = self.sae.cfg, self.measures.codes
        latents = None
        if view is not None and self.codes is not None and self.directions is not None:
            latents = collect_latents(
                self.sae,
                self.codes,
                view.rows.passages,
                CollectSettings(
                    num_contexts=settings.num_contexts,
                    per_fifth=settings.contexts_per_fifth,
                    num_sampled=settings.sampled_activations,
                    radius=settings.context_radius,
                    seed=settings.seed,
                ),
                name=self.name,
                rows=view.rows.counts,
                fingerprint=cache.fingerprint,
                directions=self.directions,
                decode_token=view.decode_token,
            )
        density_F = codes.density()
        law = fit_zipf(density_F)
        dying = None if law is None else int((density_F[find_dying(density_F, law)] > 0).sum())
        sampled = sample_latents(density_F, settings.num_latents, settings.seed)
        result = SaeResult(
            name=self.name,
            sae_dir="",
            kind=cfg.kind,
            hook=cfg.hook,
            d_model=cfg.d_model,
            num_latents=cfg.num_latents,
            k=cfg.k,
            normalization=self.sae.normalizer.kind,
            config=cfg.model_dump(mode="json"),
            normalized=self.measures.normalized.result(settings.seed),
            raw=self.measures.raw.result(settings.seed),
            codes=codes.result(settings.seed).model_copy(update={"dying": dying}),
            language_model=None,
            density=density_curve(density_F, codes.num_rows),
            features_per_token=l0_histogram(codes.rows_by_l0),
            rule=settings.rule,
            rows=codes.num_rows,
            zipf=law,
            progressive=self.measures.progressive.result(),
            collapse=measure_collapse(self.sae.W_dec, settings.overlap_latents, settings.seed),
            latents=[]
            if latents is None or view is None
            else describe_latents(latents, view.rows, sampled, density_F.numpy()),
            target=name_of(cfg.predicted) or None,
            hooks=self.measures.by_hook.results(settings.seed, density_F),
            weights_sha256=self.sae.weights_sha256(),
        )
        return result, latents


def measure_sae(
    sae: SAE,
    name: str,
    cache: ActivationCache,
    rows: MeasuredRows,
    groups: RowGroups,
    view: LatentView | None,
    settings: EvaluateConfig,
    *,
    stack: ExitStack,
    group: Group = ALONE,
    owner: int = 0,
    show_progress: bool,
) -> MeasuredSae | None:
    """Measure what needs no language model. The processes of ``group`` share the rows.

    The rows are read and encoded once. With a ``view`` their codes are kept on disk until ``stack`` ends.

    Returns:
        In process ``owner`` what all have found, else None.
    """
    blocks = list(_cut_blocks(rows, sae, view, settings))
    share = group.share(len(blocks))
    first, own = share.start, blocks[share.start : share.stop]
    with group.together():
        spill = None
        if view is not None:
            num_tokens = len(view.rows.passages)
            spill = CodeSpill(view.folder, sae.cfg.num_latents, num_tokens, settings.codes_on_disk)
            stack.enter_context(spill)
        block_0 = read_rows(sae, cache, blocks[0].split, blocks[0].rows) if own and first else None
        measures = RowMeasures(sae, name, groups.count, first, block_0)
        num_rows = sum(len(block.rows) for block in own)
        with progress_bar(name, "row", num_rows, hidden=not show_progress) as progress:
            for block in own:
                read = read_rows(sae, cache, block.split, block.rows)
                pairs = encode(sae, read.x, settings, block.number)
                if block.place is not None:
                    measures.update(read, pairs, groups.of(block.place))
                if spill is not None and block.offset is not None:
                    spill.update(pairs, block.offset)
                progress.update(len(block.rows))
    measures.collect(group, owner)
    codes, directions = None, None
    if view is not None and spill is not None:
        whole = collect_codes(spill, group, owner)
        if whole is not spill:
            spill.close()
        stack.callback(whole.close)
        directions = compare_directions(sae, view.unembedding, group, owner)
        codes = whole.finish()
    if group.rank != owner:
        return None
    return MeasuredSae(sae=sae, name=name, measures=measures, codes=codes, directions=directions)


class _Block(NamedTuple):
    """Rows that are read and encoded together, the ``number``-th of their kind; int64 [B] each.

    ``rows`` are their numbers in the split, ``place`` their places among the measured rows (None where
    latents alone are looked at on them), ``offset`` their tokens in the text (None: latents are not looked
    at).
    """

    number: int
    split: str
    rows: NDArray[np.int64]
    place: NDArray[np.int64] | None
    offset: NDArray[np.int64] | None


def _cut_blocks(
    rows: MeasuredRows, sae: SAE, view: LatentView | None, settings: EvaluateConfig
) -> Iterator[_Block]:
    """The measured rows in blocks, and then the further rows that latents are looked at on."""
    for number, index_B in enumerate(read_blocks(rows, sae, settings)):
        place_B = index_B - rows.first
        offset_B = None if view is None else view.rows.offset[place_B]
        yield _Block(number, rows.split, index_B, place_B, offset_B)
    if view is not None:
        more, offsets = view.rows.more, view.rows.more_offset
        for number, start in enumerate(range(0, len(more), _MORE_ROWS)):
            part = slice(start, start + _MORE_ROWS)
            yield _Block(number, "train", more[part], None, offsets[part])


def encode(sae: SAE, x_BD: Tensor, settings: EvaluateConfig, number: int) -> Pairs:
    """The codes of normalized rows, the ``number``-th batch of them, by the rule of the settings."""
    return sae.encode_sparse(x_BD, as_trained=settings.rule == "batch", batch_number=number)


class SaeRows(NamedTuple):
    """Rows of the cache for an SAE, on its device: float32.

    ``x`` [B, D] are encoded, ``target`` [B, O] should come out, both normalized as in training; ``raw`` are
    the latter raw, and ``removed`` is what :meth:`SAE.to_raw` needs.
    """

    x: Tensor
    target: Tensor
    raw: Tensor
    removed: Any


def read_rows(sae: SAE, cache: ActivationCache, split: str, index_B: NDArray[np.int64]) -> SaeRows:
    """Read the rows that an SAE encodes and those that it should give, of the same tokens."""
    device = sae.W_dec.device
    x_BD, raw_BD = read_hooks_side_by_side(cache, encoded_hooks(sae.cfg), index_B, split, device)
    _, removed = sae.normalizer.apply(raw_BD)
    if not sae.cfg.predicted:
        return SaeRows(x_BD, x_BD, raw_BD, removed)
    return SaeRows(
        x_BD, *read_hooks_side_by_side(cache, decoded_hooks(sae.cfg), index_B, split, device), removed
    )
