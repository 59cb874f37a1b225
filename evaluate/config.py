"""The settings of an evaluation; ``results.json`` records them."""

from typing import Literal

from pydantic import Field

from ..common.counts import Count
from ..common.validation import Settings
from .probing.config import ProbingConfig


class EvaluateConfig(Settings):
    """What is measured, on how much, and how many latents are shown."""

    max_rows: Count = Field(500_000, ge=1)
    """At most this many rows, the first of the held-out split in reading order."""
    rows_per_block: Count = Field(4096, ge=1)
    """Rows encoded at once. Bounds memory; the figures do not depend on it."""
    rule: Literal["threshold", "batch"] = "threshold"
    """How latents are selected: ``threshold`` as at inference, row by row; ``batch`` as in training, where
    kinds such as BatchTopK look at the whole batch."""
    batch_rows: Count | None = Field(None, ge=1)
    """Rows of a batch for ``rule: batch``; None: as many as in the training of each SAE."""
    other_cache: bool = False
    """Allow a cache that the SAEs were not trained from, of the same model and hook: other text, other
    context.
    """
    beside: dict[str, str] = Field(default_factory=dict)
    """Further caches of the same tokens by name, for SAEs that were trained with them (``beside`` there)."""
    overlap_latents: Count = Field(2048, ge=1)
    """So many latents of each SAE are compared with all of its own (collapse) and of every other SAE (MMCS).
    """
    match_latents: Count = Field(8192, ge=0)
    """SAEs of at most so many latents are matched one to one; 0 matches none."""
    ce_tokens: Count = Field(50_000, ge=1)
    """CE and KL: whole sequences are taken until this many tokens are scored, or the held-out rows end."""
    logit_bytes: int = Field(128 * 2**20, ge=1)
    """CE and KL: float32 logits of one forward pass take at most this, or those of one sequence."""
    probing: ProbingConfig = ProbingConfig()
    """k-sparse probing on labelled texts; none where ``probing.data`` is empty."""
    absorption: bool = False
    """Measure the absorption of first letters, which needs a model that can spell."""
    num_latents: int = Field(24, ge=0)
    """Latents in ``results.json``, spread evenly over the density ranks, beside the densest; 0: none."""
    all_latents: bool = True
    """Write what is known of all latents beside the results, for the report and ``saecache browse``."""
    num_contexts: int = Field(8, ge=1)
    """Top activating contexts per latent."""
    contexts_per_fifth: int = Field(2, ge=0)
    """Further contexts of a latent from each fifth of its activations by size."""
    sampled_activations: Count = Field(64, ge=1, le=4096)
    """Activations of each latent in a uniform sample, from which those contexts and its percentiles come."""
    context_radius: int = Field(16, ge=0, le=4096)
    """Tokens shown on each side of the peak."""
    training_rows: Count = Field(0, ge=0)
    """Latents are looked at on about so many training rows too, those of whole sequences. Figures are of the
    held-out rows alone."""
    codes_on_disk: Count = Field(500_000_000, ge=1)
    """Codes that are kept on disk, 8 bytes each, while latents are looked at; rows after these are left out.
    """
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Chooses the shown latents, their contexts and the scored sequences."""
    model_folder: str | None = None
    """Where the cache's language model is now, if it was harvested from a folder that is elsewhere or has
    another name; None: where it was. Its weights are compared with those of the harvest.
    """
    device: str = "auto"
    """Where SAEs and the language model run: cpu, cuda, cuda:1, mps, or auto (the fastest that is there)."""

    @property
    def shows_latents(self) -> bool:
        """Whether contexts of latents are collected, in the results or beside them."""
        return bool(self.num_latents or self.all_latents)
