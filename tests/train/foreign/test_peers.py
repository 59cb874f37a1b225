"""SAEs that the other libraries saved, loaded here. Needs an interpreter that has them, see
``tests/evaluate/export/test_peers.py``.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saecache.train import from_saelens, load_sae
from saecache.train.foreign.building import imported_from

PEER_PYTHON = os.environ.get("SAECACHE_PEER_PYTHON")
EXACT = 8e-6  # rounding of float32 alone
EPS = 2e-4  # SAELens's layer_norm adds 1e-5 to the standard deviation, here of 1.5 to 4.5
MOST_OTHER_PAIRS = 2e-4  # pre-activations that rounding moves across a threshold


@pytest.mark.skipif(
    PEER_PYTHON is None, reason="SAECACHE_PEER_PYTHON names no interpreter with the libraries"
)
def test_we_compute_what_the_libraries_do(tmp_path: Path) -> None:
    script = Path(__file__).with_name("save_with_peers.py")
    assert PEER_PYTHON is not None
    done = subprocess.run(
        [PEER_PYTHON, str(script), str(tmp_path)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    cases = sorted(tmp_path.iterdir())
    assert len(cases) == 5 * 4 * 2 + 8 + 4 + 2
    for case in cases:
        told = json.loads((case / "case.json").read_text())
        expected = load_file(case / "expected.safetensors")
        folder = case / "sae" / told.get("folder", "")
        if "scaling_factor" in told:
            sae = from_saelens(folder, scaling_factor=told["scaling_factor"])
        else:
            sae = load_sae(folder)
        assert imported_from(sae.cfg) == case.name.split(".")[0]
        assert sae.cfg.hook == told["hook"]
        features, reconstruction = sae.encode(expected["x"], input="raw"), sae(expected["x"], input="raw")
        active, there = features != 0, expected["features"] != 0
        others = float((active ^ there).sum() / there.sum())
        both, same = active & there, (active == there).all(1)
        feature = float(
            (features - expected["features"])[both].abs().max() / expected["features"].abs().max()
        )
        size = expected["x"].norm(dim=1)
        error = float(((reconstruction - expected["reconstruction"]).norm(dim=1) / size)[same].max())
        print(
            f"{case.name} pairs={int(there.sum())} others={others:.1e} feature={feature:.1e} rows={error:.1e}"
        )
        limit = EPS if "layer_norm" in case.name else EXACT
        assert others <= MOST_OTHER_PAIRS and feature < limit and error < limit, case.name
        assert torch.equal(
            load_sae(_saved(sae, tmp_path / "again")).encode(expected["x"], input="raw"), features
        )


def _saved(sae, folder: Path) -> Path:  # type: ignore[no-untyped-def]
    sae.save(folder)
    return folder
