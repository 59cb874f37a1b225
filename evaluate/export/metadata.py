"""The origin of an SAE in the words of the other libraries: model, hook, text, context."""

from dataclasses import dataclass
from typing import Any

from ...common.hook_names import parse_hook
from ...store import ActivationCache
from ...train import SAE
from ...train.foreign.hook_names import to_transformer_lens
from ...train.sae_hooks import name_of


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where an SAE comes from. None means unknown: only the cache knows the text and the context."""

    model: str | None
    hook: str
    context: int | None
    dataset: str | None
    prepend_bos: bool | None
    target: str | None = None  # what a transcoder predicts

    @property
    def layer(self) -> int | None:
        """The number of the block of a named hook; None for a module path."""
        parsed = parse_hook(self.hook)
        return None if parsed is None else parsed[1]

    @property
    def transformer_lens_hook(self) -> str | None:
        """As ``blocks.3.hook_resid_post``; None for a module path, for which TransformerLens has no name."""
        return to_transformer_lens(self.hook)

    @property
    def transformer_lens_target(self) -> str | None:
        """The same for the hook that a transcoder predicts."""
        return None if self.target is None else to_transformer_lens(self.target)


def find_provenance(sae: SAE, cache: ActivationCache | None) -> Provenance:
    """Collect what the SAE's config says, and what its cache says if one is given."""
    identity: dict[str, Any] = {} if cache is None else cache.manifest.identity
    text, packing = (_mapping(identity.get(key)) for key in ("text", "packing"))
    dataset = next((str(text[key]) for key in ("dataset", "name") if text.get(key)), None)
    return Provenance(
        model=sae.cfg.cache.get("model_name") or _mapping(identity.get("model")).get("name"),
        hook=sae.cfg.hook,
        target=name_of(sae.cfg.predicted) or None,
        context=None if cache is None else cache.manifest.context,
        dataset=dataset,
        prepend_bos=packing["bos_id"] is not None if "bos_id" in packing else None,
    )


def make_notes(sae: SAE, *, feature_factor: float, rows: str) -> dict[str, Any]:
    """The notes that every format carries under the key ``saecache``."""
    return {"feature_factor": feature_factor, "rows": rows, "cfg": sae.cfg.model_dump(mode="json")}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
