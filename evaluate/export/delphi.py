"""delphi's latent cache: what its ``LatentDataset`` reads to explain and score latents.

``<out>/<module>/<first>_<last>.safetensors`` holds the codes of some latents: ``locations`` [n, 3] (window,
position, latent - first), ``activations`` float16 [n], and ``tokens`` [W, T] of all windows; ``config.json``
is beside them. Written after eai-delphi 0.1.3 (latents/cache.py, latents/loader.py). Its ``LatentDataset``
then needs neither the language model nor the SAE.

The codes stream over the cache into one temporary file for each group of latents, so that one group at a time
is in memory. Legend: W windows, T tokens of a window, n codes.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from ...common.errors import SaecacheError, UsageError
from ...common.progress import progress_bar
from ...store import ActivationCache
from ...store.durable import write_bytes
from ...train import SAE
from ..measure import read_rows
from .metadata import Provenance
from .windows import MeasuredWindows

CONFIG_FILE = "config.json"
MIN_GROUPS, GROUP_BYTES = 5, 256 << 20  # as many files as delphi writes by default, or more
BLOCK_ROWS = 4096
_CODE = np.dtype([("window", "<u4"), ("position", "<u2"), ("latent", "<u4"), ("value", "<f4")])
_CHECKED_WINDOWS, _CHECKED_CODES = 64, 1 << 25  # windows whose codes are compared, dense


@dataclass(frozen=True, kw_only=True)
class DelphiCache:
    """What was written, for people: windows, their tokens, codes, files, latents that are never active."""

    module: str
    windows: int
    window_tokens: int
    codes: int
    files: int
    silent_latents: int


def write_delphi(
    sae: SAE,
    cache: ActivationCache,
    windows: MeasuredWindows,
    provenance: Provenance,
    folder: Path,
    *,
    show_progress: bool = True,
) -> DelphiCache:
    """Write the codes of all latents on all windows into the empty ``folder``, and read them back.

    Raises:
        UsageError: a code is too large for float16.
        SaecacheError: what was read back is not what was written.
    """
    module = folder / _module_of(provenance)
    module.mkdir()
    fires = np.zeros(sae.cfg.num_latents, dtype=np.int64)
    bounds = _bounds(sae, windows)
    with ExitStack() as files:
        spills = [files.enter_context(TemporaryFile(dir=folder)) for _ in bounds[1:]]
        for codes in _stream(sae, cache, windows, show_progress=show_progress):
            fires += np.bincount(codes["latent"], minlength=len(fires))
            group = np.searchsorted(bounds, codes["latent"], side="right") - 1
            order = np.argsort(group, kind="stable")
            for part in np.split(codes[order], np.flatnonzero(np.diff(group[order])) + 1):
                if len(part):
                    spills[int(np.searchsorted(bounds, part["latent"][0], side="right")) - 1].write(
                        part.tobytes()
                    )
        for first, end, spill in zip(bounds[:-1], bounds[1:], spills, strict=True):
            spill.seek(0)
            codes = np.frombuffer(spill.read(), dtype=_CODE)
            _write_group(module, codes, int(first), int(end), windows)
    config = {
        "model_name": provenance.model,
        "dataset_repo": provenance.dataset or "",
        "dataset_split": "",
        "dataset_name": "",
        "dataset_column": "text",
        "ctx_len": windows.num_tokens,  # as delphi's loader calls it
        "cache_ctx_len": windows.num_tokens,  # as its CacheConfig does
        "n_tokens": windows.ids.size,
        "n_splits": len(bounds) - 1,
        "batch_size": 32,
    }
    write_bytes(module / CONFIG_FILE, (json.dumps(config, indent=4) + "\n").encode("utf-8"))
    _check(sae, cache, windows, module, fires)
    return DelphiCache(
        module=module.name,
        windows=len(windows.ids),
        window_tokens=windows.num_tokens,
        codes=int(fires.sum()),
        files=len(bounds) - 1,
        silent_latents=int((fires == 0).sum()),
    )


def _module_of(provenance: Provenance) -> str:
    """The hook as the name of a folder."""
    return provenance.hook.replace("/", "_") or "hook"


def _bounds(sae: SAE, windows: MeasuredWindows) -> NDArray[np.int64]:
    """The first latent of each group, and the number of latents at the end."""
    expected = windows.ids.size * float(sae.cfg.k or 64) * _CODE.itemsize
    groups = min(sae.cfg.num_latents, max(MIN_GROUPS, int(expected // GROUP_BYTES) + 1))
    return np.unique(np.linspace(0, sae.cfg.num_latents, groups + 1).astype(np.int64))


def _stream(
    sae: SAE, cache: ActivationCache, windows: MeasuredWindows, *, show_progress: bool
) -> Iterator[NDArray[np.void]]:
    """The codes of the measured rows in the windows, block by block, in reading order; zeros are left out."""
    rows = windows.rows
    with progress_bar(f"codes of {sae.cfg.name}", "row", rows.count, hidden=not show_progress) as progress:
        for block in rows.blocks(BLOCK_ROWS):
            numbers = np.arange(block.start, block.stop)
            index = np.asarray(cache.token_index(rows.split)[block.start : block.stop]).astype(np.int64)
            window, position = windows.find(index)
            inside = np.flatnonzero(window >= 0)
            progress.update(len(block))
            if len(inside) == 0:
                continue
            x_BD = read_rows(sae, cache, rows.split, numbers[inside]).x
            pairs = sae.encode_sparse(x_BD)
            value = pairs.value.float().cpu().numpy()
            with np.errstate(over="ignore"):  # which the next lines find
                stored = value.astype(np.float16)
            if not np.isfinite(stored).all():
                raise UsageError(
                    f"SAE {sae.cfg.name} has a code of {float(np.abs(value).max()):.4g}, and delphi stores "
                    "float16, of at most 65,504: train on normalized rows"
                )
            active = np.flatnonzero(stored != 0)
            row = inside[pairs.rows().cpu().numpy()[active]]
            codes = np.empty(len(active), dtype=_CODE)
            codes["window"], codes["position"] = window[row], position[row]
            codes["latent"], codes["value"] = pairs.latent.cpu().numpy()[active], value[active]
            yield codes


def _write_group(
    module: Path, codes: NDArray[np.void], first: int, end: int, windows: MeasuredWindows
) -> None:
    """Write the latents from ``first`` up to ``end``; the file's name has the last one."""
    small = end - first <= 1 << 16 and len(windows.ids) <= 1 << 16
    locations = np.empty((len(codes), 3), dtype=np.uint16 if small else np.uint32)
    locations[:, 0], locations[:, 1] = codes["window"], codes["position"]
    locations[:, 2] = codes["latent"] - first
    tensors = {
        "locations": locations,
        "activations": codes["value"].astype(np.float16),
        "tokens": windows.ids,
    }
    write_bytes(module / f"{first}_{end - 1}.safetensors", save(tensors))


def _check(
    sae: SAE, cache: ActivationCache, windows: MeasuredWindows, module: Path, fires: NDArray[np.int64]
) -> None:
    """Compare what was written with the SAE: counts of every latent, and all codes of some windows.

    Raises:
        SaecacheError: they differ.
    """
    number = max(1, min(_CHECKED_WINDOWS, _CHECKED_CODES // (windows.num_tokens * len(fires))))
    chosen = np.unique(np.linspace(0, len(windows.ids) - 1, number).astype(np.int64))
    found = np.zeros((len(chosen), windows.num_tokens, len(fires)), dtype=np.float16)
    counted = np.zeros_like(fires)
    for path in module.glob("*.safetensors"):
        group: dict[str, NDArray[Any]] = load_file(path)
        window, position, latent = group["locations"].astype(np.int64).T
        latent += int(path.stem.partition("_")[0])
        counted += np.bincount(latent, minlength=len(fires))
        place = np.searchsorted(chosen, window).clip(max=len(chosen) - 1)
        own = chosen[place] == window
        found[place[own], position[own], latent[own]] = group["activations"][own]
        if not np.array_equal(group["tokens"], windows.ids):
            raise SaecacheError(f"{path.name} has other tokens than were written: please report it")
    expected = np.zeros_like(found)
    rows = windows.rows
    index = np.asarray(cache.token_index(rows.split)[rows.first : rows.first + rows.count]).astype(np.int64)
    window, position = windows.find(index)
    own = np.flatnonzero(np.isin(window, chosen))
    if len(own):
        x_BD = read_rows(sae, cache, rows.split, rows.first + own).x
        codes = sae.encode(x_BD).float().cpu().numpy().astype(np.float16)
        expected[np.searchsorted(chosen, window[own]), position[own]] = codes
    close = np.isclose(found.astype(np.float32), expected.astype(np.float32), rtol=2e-3, atol=1e-6)
    other = int((~close).sum())
    if not np.array_equal(counted, fires) or other > 1e-3 * max(1, int((expected != 0).sum())):
        raise SaecacheError(
            f"what was written for delphi is not what the SAE gives: {other} of {int((expected != 0).sum())} "
            f"codes differ in {len(chosen)} windows: please report it, with the SAE"
        )
