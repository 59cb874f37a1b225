"""Cross-layer transcoders: the latents of each layer read it, and write to it and to all later ones."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecache import CacheWriter
from saecache.common.errors import UsageError
from saecache.common.fvu import FVU
from saecache.evaluate import EvaluateConfig
from saecache.evaluate import run as evaluate
from saecache.store.reading.reader import ActivationCache, open_cache
from saecache.testing.sparse_rows import sparse_rows
from saecache.train import TrainConfig, load_sae, run
from saecache.train.latent_shards import LatentShards
from saecache.train.layer_blocks import LayerBlocks
from saecache.train.runs.planning import plan_run
from saecache.train.tensor_file import write_tensors

Config = Callable[..., TrainConfig]
TOPK: dict[str, Any] = {"kind": "topk", "k": 6}
JUMPRELU: dict[str, Any] = {"kind": "jumprelu", "penalty": {"kind": "tanh", "coefficient": 0.003}}
LAYERS = (0, 1, 10)
HOOKS = {
    "hook": "mlp_in.*",
    "target": {"hook": "mlp_out.*", "cross_layer": True},
    "initialisation": {"encoder": "independent", "decoder_bias": "mean"},
}


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """Three layers. What layer 0 reads decides in part what the two others add, which only it can know."""
    path, rows = tmp_path_factory.mktemp("cache") / "layers", {}
    first = sparse_rows(2400, 12, 0)
    for i in LAYERS:
        rows[f"mlp_in.{i}"] = sparse_rows(2400, 12, i)
        own = (rows[f"mlp_in.{i}"] @ sparse_rows(12, 8, i)).relu()
        rows[f"mlp_out.{i}"] = own + (first @ sparse_rows(12, 8, 20 + i)).relu()
    rows |= {"wide": torch.cat([first, own], dim=1), "resid.0": first, "resid.1": own}
    widths = {hook: values.shape[1] for hook, values in rows.items()}
    with CacheWriter(path, hooks=widths, identity={"model": {"name": "toy"}}, heldout_fraction=0.1) as writer:
        writer.write_rows(rows)
    return open_cache(path)


def test_it_predicts_later_layers_from_earlier_ones(
    layers: ActivationCache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(TOPK, JUMPRELU, steps=60, normalization="unit_scale", **HOOKS)
    result = run(config, layers, tmp_path / "run")
    alone = run(
        make_config(
            {**TOPK, "k": 2},
            steps=60,
            normalization="unit_scale",
            **HOOKS | {"target": {"hook": "mlp_out.*"}},
            num_latents=32,
        ),
        layers,
        tmp_path / "alone",
    )
    assert set(result.saes) == {"topk_k6", "jumprelu_tanh_0.003"} and not result.failed
    index = np.arange(layers.num_rows("heldout"))
    x, y = (
        torch.cat([layers.rows(f"{kind}.{i}", index, "heldout", "none") for i in LAYERS], dim=1).float()
        for kind in ("mlp_in", "mlp_out")
    )
    for name, folder in result.saes.items():
        sae = load_sae(folder)
        assert sae.cfg.shape == "cross-layer transcoder" and sae.cfg.format_version == 2
        assert sae.W_enc.shape == (96, 12) and sae.W_dec.shape == (96, 24) and sae.b_in.shape == (36,)
        blocks = LayerBlocks(3, LatentShards.divide(96))
        assert not any(bool(part.any()) for part in blocks.unwritten(sae.W_dec))
        assert bool((sae.W_dec[:32, 8:].norm(dim=1) > 0.1).any())  # the first layer's write to the others
        x_normalized = sae.normalizer.apply(x)[0] - sae.b_in
        pre = x_normalized @ torch.block_diag(*sae.W_enc.chunk(3)).T + sae.b_enc
        torch.testing.assert_close(
            sae.encode(x, input="raw"), pre * (sae.encode(x, input="raw") != 0), rtol=1e-4, atol=1e-4
        )
        assert result.last_lines[name]["heldout_fvu"] < 0.9
    results = evaluate([result.run_dir], layers, EvaluateConfig(num_latents=0), show_progress=False)
    measured = {one.name: one for one in results.saes}["topk_k6"]
    assert measured.place == "mlp_in.0+mlp_in.1+mlp_in.10 → mlp_out.0+mlp_out.1+mlp_out.10"
    assert [one.hook for one in measured.hooks] == [f"mlp_out.{i}" for i in LAYERS]
    sae = load_sae(result.saes["topk_k6"])
    for one, target, made in zip(measured.hooks, y.chunk(3, 1), sae(x, input="raw").chunk(3, 1), strict=True):
        fvu = FVU()
        fvu.add(target, made)
        assert one.raw.fvu == pytest.approx(fvu.value(), rel=1e-4)
        single = alone.last_lines[f"{one.hook.replace('out', 'in')}-topk_k2"]["heldout_fvu"]
        assert one.hook == "mlp_out.0" or one.normalized.fvu < single  # which reads its own layer alone


def test_it_starts_from_a_trained_one(layers: ActivationCache, make_config: Config, tmp_path: Path) -> None:
    (folder,) = run(make_config(TOPK, **HOOKS), layers, tmp_path / "first").saes.values()
    settings = {**HOOKS, "initialisation": {}, "num_latents": None}
    still = {"optimizer": {"learning_rate": 1e-30}, "steps": 1}
    config = make_config(TOPK, init=str(folder), **settings, **still)
    (again,) = run(config, layers, tmp_path / "again").saes.values()
    first, second = load_sae(folder), load_sae(again)
    for name, tensor in first.named_buffers():
        torch.testing.assert_close(tensor, second.get_buffer(name), rtol=1e-6, atol=1e-6)
    with pytest.raises(UsageError, match=r"init is a cross-layer transcoder from mlp_in\.0\+mlp_in\.1"):
        plan_run(make_config(TOPK, init=str(folder), num_latents=None, hook="mlp_in.0"), layers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook": "mlp_in.0"}, "needs two hooks or more, and hook gives mlp_in.0 alone"),
        ({"target": {"hook": "wide", "cross_layer": True}}, "target.hook gives wide for several hooks"),
        ({"hook": ["mlp_in.0", "wide"]}, "* stands for the number of the block"),
        (
            {"hook": ["mlp_in.0", "mlp_out.1"], "target": {"hook": "resid.*", "cross_layer": True}},
            "the hooks of a cross-layer transcoder must be equally wide (mlp_in.0: 12, mlp_out.1: 8)",
        ),
        ({"num_latents": 97}, "97 latents cannot be divided among 3 layers"),
        ({"initialisation": {}}, "W_enc of width 12 cannot start as a multiple of W_dec of width 24"),
    ],
)
def test_impossible_layers_are_refused(
    changes: dict[str, Any], message: str, layers: ActivationCache, make_config: Config
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        plan_run(make_config(TOPK, **HOOKS | changes), layers)


def test_a_skip_connection_is_refused() -> None:
    with pytest.raises(ValueError, match="a cross-layer transcoder has no skip connection"):
        TrainConfig.model_validate(
            {
                "variants": [TOPK],
                "num_latents": 6,
                "steps": 1,
                **HOOKS,
                "target": {"hook": "mlp_out.*", "skip": True, "cross_layer": True},
            }
        )


def test_a_decoder_of_an_earlier_layer_is_refused(
    layers: ActivationCache, make_config: Config, tmp_path: Path
) -> None:
    (folder,) = run(make_config(TOPK, steps=1, **HOOKS), layers, tmp_path / "run").saes.values()
    tensors = dict(load_sae(folder).named_buffers())
    tensors["W_dec"][40, 3] = 1.0
    write_tensors(folder / "weights.safetensors", tensors)
    with pytest.raises(UsageError, match="a latent writes to a layer before its own"):
        load_sae(folder)
