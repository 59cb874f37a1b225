"""Exports loaded by the libraries they are for. Needs an interpreter that has them, of an environment apart:

pip install sae-lens==6.54.12 dictionary-learning==0.1.0 eai-sparsify==1.3.3
SAECACHE_PEER_PYTHON=.../bin/python pytest -s tests/evaluate/export/test_peers.py
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saecache.common.errors import UsageError
from saecache.evaluate.export import export_sae
from saecache.evaluate.export.formats import format_names
from saecache.store.normalization import NORMALIZATIONS
from saecache.store.reading.reader import ActivationCache
from saecache.train import load_sae
from saecache.train.variants import VARIANTS

from .conftest import FEW, HOOK, OF_EVERY_KIND, Trained, free_relu

PEER_PYTHON = os.environ.get("SAECACHE_PEER_PYTHON")
EPS = 5e-4  # what SAELens' 1e-5 beside the standard deviation may change; else float32's rounding
EXACT = 2e-5


def write_case(sae_dir: Path, format_name: str, cache: ActivationCache, case: Path) -> None:
    sae = load_sae(sae_dir)
    per_row = sae.normalizer.kind in ("unit", "layer_norm", "rms_norm")
    normalized = per_row and format_name != "saelens"
    export = export_sae(sae_dir, format_name, case / "export", cache=cache, normalized_input=normalized)
    kind = sae.normalizer.kind if normalized else "none"
    x = cache.rows(HOOK, np.arange(cache.num_rows("heldout")), "heldout", kind).float()
    features = sae.encode(x, input=export.rows)  # type: ignore[arg-type]
    assert isinstance(features, Tensor)
    factor = torch.tensor(export.feature_factor)
    if export.features_times_decoder_norm:
        factor = factor * sae.W_dec.norm(dim=1)
    reconstruction = sae(x, input=export.rows)
    expected = {"x": x, "features": features * factor, "reconstruction": reconstruction}
    save_file({name: t.contiguous() for name, t in expected.items()}, case / "expected.safetensors")


@pytest.mark.skipif(
    PEER_PYTHON is None, reason="SAECACHE_PEER_PYTHON names no interpreter with the libraries"
)
def test_the_libraries_compute_what_we_do(trained: Trained, cache: ActivationCache, tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    folders: dict[str, Path] = {"relu_free.scale": free_relu(cache, tmp_path / "run")}
    for normalization in NORMALIZATIONS:
        kinds = sorted(VARIANTS) if normalization in OF_EVERY_KIND else FEW
        folders |= {f"{kind}.{normalization}": trained(kind, normalization) for kind in kinds}
    for name, folder in folders.items():
        for format_name in format_names():
            case = cases / f"{name}.{format_name}"
            try:
                write_case(folder, format_name, cache, case)
            except UsageError:  # refused; test_formats.py knows which
                assert not (case / "export").exists()
                case.rmdir() if case.exists() else None
    script = Path(__file__).with_name("load_with_peers.py")
    assert PEER_PYTHON is not None
    done = subprocess.run(
        [PEER_PYTHON, str(script), str(cases)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == sum(1 for _ in cases.iterdir()) >= 60
    for name, values in found.items():
        print(
            name, *(f"{key}={value if key == 'class' else f'{value:.1e}'}" for key, value in values.items())
        )
        per_row = ".unit.saelens" in name or ".layer_norm.saelens" in name
        limit = EPS if per_row else EXACT
        assert values["mask"] < 3e-3 and values["feature"] < limit and values["reconstruction"] < limit, name
