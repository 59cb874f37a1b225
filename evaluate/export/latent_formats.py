"""Exports what an SAE's latents do on a cache, for tools that explain latents or show them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import UsageError
from ...store import ActivationCache, open_cache
from ..rows import choose_rows
from ..targets import check_belongs
from .delphi import write_delphi
from .metadata import find_provenance
from .new_folder import check_new, new_folder
from .runner import find_one
from .windows import find_windows

if TYPE_CHECKING:
    from .neuronpedia import NeuronpediaNames

WINDOW, MAX_ROWS = 32, 500_000


@dataclass(frozen=True, kw_only=True)
class LatentExport:
    """A finished export; ``facts`` say what is in it, ``loading`` is Python that reads it."""

    path: Path
    format: str
    facts: dict[str, Any]
    loading: str


def export_delphi(
    sae_dir: Path | str,
    out: Path | str,
    *,
    cache: ActivationCache | Path | str,
    window: int = WINDOW,
    max_rows: int = MAX_ROWS,
    other_cache: bool = False,
    show_progress: bool = True,
) -> LatentExport:
    """Write the codes of all latents on held-out text as delphi's latent cache, in the new folder ``out``.

    Args:
        sae_dir: the SAE's folder, that of a run with one SAE, or a URL.
        window: tokens of a window, a divisor of the cache's context and a multiple of delphi's
            ``example_ctx_len``. Only windows of held-out documents are written.
        max_rows: at most so many held-out rows, the first ones.
        other_cache: allow a cache of the same model that the SAE was not trained from.

    Raises:
        UsageError: no SAE there, another cache, no token ids, no held-out rows, or ``out`` exists.
        SaecacheError: what was read back is not what the SAE gives, or it cannot be written.
    """
    target = find_one(sae_dir)
    sae = target.load()
    opened = open_cache(cache) if isinstance(cache, (str, Path)) else cache
    check_belongs(sae, target, opened, other_cache=other_cache)
    if opened.manifest.tokens != "ids and documents":
        raise UsageError(f"{opened.path} has no token ids, and delphi shows text: harvest them with the rows")
    rows, _ = choose_rows(opened, max_rows)
    windows = find_windows(opened, rows, window)
    path = check_new(out, 16 * windows.ids.size * round(sae.cfg.k or 64))
    provenance = find_provenance(sae, opened)
    with new_folder(path) as folder:
        written = write_delphi(sae, opened, windows, provenance, folder, show_progress=show_progress)
    loading = (
        "from delphi.config import ConstructorConfig, SamplerConfig; "
        "from delphi.latents.loader import LatentDataset; "
        f"data = LatentDataset({str(path)!r}, SamplerConfig(), ConstructorConfig())"
    )
    return LatentExport(path=path, format="delphi", facts=asdict(written), loading=loading)


def export_neuronpedia(
    sae_dir: Path | str,
    out: Path | str,
    *,
    latents: Path | str,
    names: "NeuronpediaNames",
    cache: ActivationCache | Path | str | None = None,
    results: Path | str | None = None,
) -> LatentExport:
    """Write a bundle for Neuronpedia's bulk import into the new folder ``out``.

    Args:
        sae_dir: the SAE's folder, that of a run with one SAE, or a URL.
        latents: the folder of its latents that ``saecache evaluate`` wrote, ``results.latents/<name>``.
        names: what the bundle is called at Neuronpedia.
        cache: names the text and the context; without it the bundle does not say them.
        results: the results with a judge's explanations; those that ``latents`` belongs to if None.

    Raises:
        UsageError: no SAE there, latents or results of another SAE, no explanations in ``results``, a hook
            without a layer, or ``out`` exists.
        SaecacheError: it cannot be written, or what was read back is not what was written.
    """
    from ..latents.folder import read_latents
    from .explanations import find_interpretation
    from .neuronpedia import write_neuronpedia

    target = find_one(sae_dir)
    sae = target.load()
    found = read_latents(Path(latents))
    if (found.num_latents, found.info.hook) != (sae.cfg.num_latents, sae.cfg.hook):
        raise UsageError(
            f"{latents} is of an SAE with {found.num_latents:,} latents at {found.info.hook}, and "
            f"{target.sae_dir} has {sae.cfg.num_latents:,} at {sae.cfg.hook}: give the latents of this SAE"
        )
    interpretation = find_interpretation(sae, Path(latents), None if results is None else Path(results))
    opened = open_cache(cache) if isinstance(cache, (str, Path)) else cache
    path = check_new(out, found.info.num_bytes)
    with new_folder(path) as folder:
        provenance = find_provenance(sae, opened)
        written = write_neuronpedia(found, provenance, names, folder, interpretation=interpretation)
    return LatentExport(path=path, format="neuronpedia", facts=asdict(written), loading="")
