"""Cross-layer transcoders in circuit-tracer's format: the files, what they compute, and what is refused."""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from saecache.common.errors import UsageError
from saecache.evaluate.export import export_sae
from saecache.evaluate.export.formats import load_formats
from saecache.store import CacheWriter, open_cache
from saecache.store.reading.reader import ActivationCache
from saecache.testing.sparse_rows import sparse_rows
from saecache.train import TrainConfig, load_sae, run

PEER_PYTHON = os.environ.get("SAECACHE_CIRCUIT_TRACER_PYTHON")  # of an environment with circuit-tracer 0.5.0
WITH_CIRCUIT_TRACER = """
import sys, torch
from safetensors.torch import load_file
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
clt = load_clt(sys.argv[1], dtype=torch.float32, device=torch.device("cpu"))
case = load_file(sys.argv[2])
with torch.no_grad():
    for name, found in (("codes", clt.encode(case["x"])), ("predicted", clt(case["x"]))):
        print(float((found - case[name]).norm() / case[name].norm()))
"""
LAYERS, WIDTH = 3, 12
KINDS: list[dict[str, Any]] = [
    {"kind": "relu", "decoder": "free", "name": "relu"},
    {"kind": "jumprelu", "penalty": {"kind": "tanh", "coefficient": 0.003}, "name": "jumprelu"},
    {"kind": "batch_topk", "k": 6, "name": "batch_topk"},
    {"kind": "topk", "k": 6, "name": "topk"},
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    rows = {}
    for i in range(LAYERS):
        rows[f"mlp_in.{i}"] = 3 * sparse_rows(1500, WIDTH, i)
        rows[f"mlp_out.{i}"] = (i + 1) * (rows[f"mlp_in.{i}"] @ sparse_rows(WIDTH, WIDTH, i)).relu()
    path = tmp_path_factory.mktemp("cache") / "cache"
    identity = {"model": {"name": "toy"}}
    with CacheWriter(
        path, hooks=dict.fromkeys(rows, WIDTH), identity=identity, heldout_fraction=0.1
    ) as writer:
        writer.write_rows(rows)
    return open_cache(path)


def train(cache: ActivationCache, out: Path, normalization: str, hook: Any = "mlp_in.*") -> dict[str, Path]:
    return run(
        TrainConfig.model_validate(
            {
                "variants": KINDS,
                "num_latents": 96,
                "batch_rows": 256,
                "steps": 12,
                "optimizer": {"learning_rate": 0.01},
                "log": {"progress": False},
                "device": "cpu",
                "hook": hook,
                "target": {"hook": "mlp_out.*", "cross_layer": True},
                "normalization": normalization,
                "initialisation": {"encoder": "independent"},
            }
        ),
        cache,
        out,
    ).saes


@pytest.fixture(scope="module")
def saes(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("runs")
    return {kind: train(cache, folder / kind, kind) for kind in ("unit_scale", "unit")}


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "batch_topk"])
@pytest.mark.parametrize("normalization", ["unit_scale", "unit"])
def test_the_export_computes_what_the_sae_does(
    kind: str, normalization: str, saes: dict[str, dict[str, Path]], cache: ActivationCache, tmp_path: Path
) -> None:
    folder, normalized = saes[normalization][kind], normalization == "unit"
    export = export_sae(folder, "circuit_tracer", tmp_path / "out", cache=cache, normalized_input=normalized)
    assert (export.architecture, export.feature_factor) == ("CrossLayerTranscoder", 1.0)
    assert [one.rows for one in export.comparisons] == ["random", "heldout"]
    assert all(one.fvu is None and one.fvu_exported is None for one in export.comparisons)
    loading = load_formats()["circuit_tracer"].loading(export.path)
    assert "import torch; " in loading and "torch.float32" in loading
    for one in export.comparisons:
        assert one.mask_difference < 1e-4 and one.feature < 2e-6 and one.reconstruction < 2e-6 and one.l0 > 1
    for i in range(LAYERS):
        encoder = load_file(export.path / f"W_enc_{i}.safetensors")
        names = {f"W_enc_{i}": (32, 12), f"b_enc_{i}": (32,), f"b_dec_{i}": (12,), f"threshold_{i}": (32,)}
        if kind == "relu":
            del names[f"threshold_{i}"]
        assert {name: tuple(tensor.shape) for name, tensor in encoder.items()} == names
        (decoder,) = load_file(export.path / f"W_dec_{i}.safetensors").values()
        assert decoder.shape == (32, LAYERS - i, 12)
    config = yaml.safe_load((export.path / "config.yaml").read_text())
    assert config == {
        "model_kind": "cross_layer_transcoder",
        "model_name": "toy",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
    }
    if PEER_PYTHON is not None:
        compare_with_circuit_tracer(folder, export.path, cache, tmp_path)


def compare_with_circuit_tracer(folder: Path, path: Path, cache: ActivationCache, tmp_path: Path) -> None:
    sae, index = load_sae(folder), np.arange(cache.num_rows("heldout"))
    hooks = sae.cfg.hooks or ()
    space = "raw" if hooks[0].normalizer.kind == "unit_scale" else "normalized"
    kind = "none" if space == "raw" else "unit"
    x = torch.cat([cache.rows(part.hook, index, "heldout", kind) for part in hooks], dim=1).float()

    def by_layer(rows: torch.Tensor) -> torch.Tensor:
        return rows.view(len(rows), LAYERS, -1).transpose(0, 1).contiguous()

    codes, predicted = sae.encode(x, input=space), sae(x, input=space)  # type: ignore[arg-type]
    case = {"x": by_layer(x), "codes": by_layer(codes), "predicted": by_layer(predicted)}
    save_file(case, tmp_path / "case.safetensors")
    assert PEER_PYTHON is not None
    found = subprocess.run(
        [PEER_PYTHON, "-c", WITH_CIRCUIT_TRACER, str(path), str(tmp_path / "case.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(float(line) < 1e-6 for line in found.stdout.split())


@pytest.mark.parametrize(
    ("normalization", "kind", "format_name", "message"),
    [
        ("unit_scale", "topk", "circuit_tracer", "has no cross-layer transcoders of that rule, nor has an"),
        ("unit_scale", "relu", "saelens", "no cross-layer transcoders of that rule: use --format circuit_tr"),
        ("unit", "relu", "circuit_tracer", "less its own mean, by a number of its own.*--normalized-input"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    normalization: str,
    kind: str,
    format_name: str,
    message: str,
    saes: dict[str, dict[str, Path]],
    cache: ActivationCache,
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=message):
        export_sae(saes[normalization][kind], format_name, tmp_path / "out", cache=cache)
    assert not (tmp_path / "out").exists()


def test_layers_must_be_numbered_from_zero(cache: ActivationCache, tmp_path: Path) -> None:
    folder = train(cache, tmp_path / "run", "unit_scale", ["mlp_in.1", "mlp_in.2"])["relu"]
    with pytest.raises(UsageError, match="numbers the layers of a cross-layer transcoder from 0"):
        export_sae(folder, "circuit_tracer", tmp_path / "out")
