"""Every kind in every format: exported with a small difference, or refused with the reason."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from saecache.common.errors import SaecacheError, UsageError
from saecache.evaluate.export import Export, export_sae
from saecache.evaluate.export.formats import load_formats
from saecache.store.reading.reader import ActivationCache
from saecache.train import load_sae
from saecache.train.foreign.exported import REPORT_FILE
from saecache.train.variants import VARIANTS

from .conftest import D_MODEL, FEW, HOOK, LATENTS, Trained, free_relu

D, F = D_MODEL, LATENTS
HOLDING = [name for name, each in load_formats().items() if each.forms]  # autoencoders
COLUMNS = ("saelens", "dictionary_learning", "sparsify")
ARCHITECTURES = {  # kind: its class in the format of each column
    "relu": ("standard", "AutoEncoder", None),
    "gated": ("gated", "GatedAutoEncoder", None),
    "jumprelu": ("jumprelu", "JumpReluAutoEncoder", None),
    "topk": ("topk", "AutoEncoderTopK", "SparseCoder"),
    "multi_topk": ("topk", "AutoEncoderTopK", "SparseCoder"),
    "probabilistic_topk": ("topk", "AutoEncoderTopK", "SparseCoder"),
    "batch_topk": ("jumprelu", "BatchTopKSAE", None),
    "mutual_choice": ("jumprelu", "BatchTopKSAE", None),
    "sampled": ("jumprelu", "BatchTopKSAE", None),
    "matryoshka_batch_topk": ("jumprelu", "MatryoshkaBatchTopKSAE", None),
    "feature_choice": ("jumprelu", "JumpReluAutoEncoder", None),
}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "standard": {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)},
    "topk": {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)},
    "jumprelu": {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "threshold": (F,)},
    "gated": {
        "W_enc": (D, F),
        "b_gate": (F,),
        "b_mag": (F,),
        "r_mag": (F,),
        "W_dec": (F, D),
        "b_dec": (D,),
    },
    "AutoEncoder": {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F), "bias": (D,)},
    "AutoEncoderTopK": {
        "encoder.weight": (F, D),
        "encoder.bias": (F,),
        "decoder.weight": (D, F),
        "b_dec": (D,),
        "k": (),
        "threshold": (),
    },
    "GatedAutoEncoder": {
        "encoder.weight": (F, D),
        "decoder.weight": (D, F),
        "decoder_bias": (D,),
        "r_mag": (F,),
        "gate_bias": (F,),
        "mag_bias": (F,),
    },
    "JumpReluAutoEncoder": {
        "W_enc": (D, F),
        "b_enc": (F,),
        "W_dec": (F, D),
        "b_dec": (D,),
        "threshold": (F,),
    },
    "SparseCoder": {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)},
}
SHAPES["BatchTopKSAE"] = SHAPES["AutoEncoderTopK"]
SHAPES["MatryoshkaBatchTopKSAE"] = {
    **{name: shape for name, shape in SHAPES["JumpReluAutoEncoder"].items() if name != "threshold"},
    "k": (),
    "threshold": (),
    "group_sizes": (5,),
}


def tensors_of(export: Export) -> dict[str, Tensor]:
    if export.format == "dictionary_learning":
        tensors: dict[str, Tensor] = torch.load(export.path / "ae.pt", weights_only=True)
        return tensors
    name = {"saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors"}[export.format]
    return dict(load_file(export.path / name))


@pytest.mark.parametrize(
    ("format_name", "normalization"),
    [("saelens", "unit"), ("saelens", "rms_norm"), *((name, "scale") for name in HOLDING)],
)
@pytest.mark.parametrize("kind", sorted(VARIANTS))
def test_every_kind_is_exported_or_refused(
    kind: str, format_name: str, normalization: str, trained: Trained, cache: ActivationCache, tmp_path: Path
) -> None:
    folder, out = trained(kind, normalization), tmp_path / "out"
    if kind not in ARCHITECTURES:  # a newer kind: its rule is a known one, or it is refused
        with contextlib.suppress(SaecacheError):
            assert export_sae(folder, format_name, out, cache=cache).architecture in SHAPES
        return
    expected = ARCHITECTURES[kind][COLUMNS.index(format_name)]
    if expected is None:
        with pytest.raises(UsageError, match=rf"SAE {kind} \({kind}\) finds its codes by") as error:
            export_sae(folder, format_name, out, cache=cache)
        assert "sparsify holds topk only: use --format dictionary_learning or saelens" in str(error.value)
        assert not out.exists()
        return
    export = export_sae(folder, format_name, out, cache=cache)
    assert export.architecture == expected
    assert export.exact == (kind != "probabilistic_topk")
    assert [c.rows for c in export.comparisons] == (["random"] if export.exact else []) + ["heldout"]
    eps = normalization == "unit"
    for comparison in export.comparisons:
        assert comparison.mask_difference <= (3e-3 if eps else 1e-4)
        assert comparison.feature < (3e-4 if eps else 2e-6)
        assert comparison.reconstruction < (5e-4 if eps else 2e-5)
        assert comparison.l0 > 1
    if format_name == "saelens":
        config = json.loads((export.path / "cfg.json").read_text("utf-8"))
        wanted = {"unit": "layer_norm", "rms_norm": "constant_norm_rescale"}.get(normalization, "none")
        assert config["normalize_activations"] == wanted
        if normalization != "unit":  # and back, by the loader of SAELens's files
            x = cache.rows(HOOK, range(100), "heldout", "none")
            torch.testing.assert_close(
                load_sae(export.path)(x, input="raw"), load_sae(folder)(x, input="raw"), rtol=1e-3, atol=1e-4
            )
    assert {name: tuple(t.shape) for name, t in tensors_of(export).items()} == SHAPES[expected]
    assert all(t.dtype in (torch.float32, torch.int32, torch.int64) for t in tensors_of(export).values())


def check_reading_back(export: Export, folder: Path, cache: ActivationCache) -> None:
    """An export of an SAE of normalized rows is read as such, and not as one of raw rows."""
    back, sae, x = load_sae(export.path), load_sae(folder), cache.rows(HOOK, range(100), "heldout", "none")
    assert back.normalizer == sae.normalizer
    torch.testing.assert_close(back(x, input="raw"), sae(x, input="raw"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("format_name", ["dictionary_learning", "sparsify", "saelens"])
def test_normalized_rows_are_remembered(
    format_name: str, trained: Trained, cache: ActivationCache, tmp_path: Path
) -> None:
    folder = trained("topk", "unit")
    export = export_sae(folder, format_name, tmp_path / "out", cache=cache, normalized_input=True)
    check_reading_back(export, folder, cache)
    if format_name != "sparsify":  # whose config has no room for it
        (export.path / REPORT_FILE).unlink()
        check_reading_back(export, folder, cache)


@pytest.mark.parametrize(
    ("notes", "match"),
    [
        ({"rows": "normalized"}, "takes normalized rows, but not which"),
        (
            {"rows": "normalized", "cfg": {"normalization": {"kind": "x", "d_model": 1, "scale": 1}}},
            "not which",
        ),
        (
            {"rows": "normalized", "cfg": {"normalization": {"kind": "unit", "d_model": 3, "scale": 1}}},
            "width 3",
        ),
        ({"rows": "normalized", "cfg": [1]}, "not which"),
    ],
)
def test_foreign_notes_are_not_believed(
    notes: dict[str, Any], match: str, trained: Trained, cache: ActivationCache, tmp_path: Path
) -> None:
    export = export_sae(
        trained("topk", "unit"), "sparsify", tmp_path / "out", cache=cache, normalized_input=True
    )
    (export.path / REPORT_FILE).write_text(json.dumps(notes))
    with pytest.raises(UsageError, match=match):
        load_sae(export.path)


def test_the_table_is_of_kinds_that_there_are() -> None:
    assert set(ARCHITECTURES) <= set(VARIANTS)


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "unit_scale"])
@pytest.mark.parametrize("kind", FEW)
def test_the_other_normalizations(
    kind: str, normalization: str, trained: Trained, cache: ActivationCache, tmp_path: Path
) -> None:
    export = export_sae(trained(kind, normalization), "saelens", tmp_path / "out", cache=cache)
    assert export.rows == "raw"
    assert all(c.feature < 3e-4 for c in export.comparisons)
    if normalization == "layer_norm":
        other = export_sae(
            trained(kind, normalization), "dictionary_learning", tmp_path / "2", normalized_input=True
        )
        assert (other.rows, other.feature_factor) == ("normalized", 1)
        assert all(c.feature < 2e-6 for c in other.comparisons)
        check_reading_back(other, trained(kind, normalization), cache)
    if normalization == "unit_scale":
        assert export.feature_factor == 1 / load_sae(trained(kind, normalization)).normalizer.scale != 1
    if normalization == "none":
        assert export.feature_factor == 1
        with pytest.raises(
            UsageError, match="trained on raw rows, so that --normalized-input changes nothing"
        ):
            export_sae(trained(kind, normalization), "saelens", tmp_path / "2", normalized_input=True)
        other = export_sae(trained(kind, normalization), "dictionary_learning", tmp_path / "3", cache=cache)
        assert all(c.feature < 2e-6 for c in other.comparisons)


@pytest.mark.parametrize("format_name", ["dictionary_learning", "sparsify"])
@pytest.mark.parametrize("normalization", ["unit", "layer_norm", "rms_norm"])
def test_rows_with_their_own_norm_are_refused_where_there_is_no_such_step(
    format_name: str, normalization: str, trained: Trained, tmp_path: Path
) -> None:
    told = (
        rf"SAE topk \(topk\) .*'{normalization}'.*{format_name} format has no such step.*--normalized-input"
    )
    with pytest.raises(UsageError, match=told):
        export_sae(trained("topk", normalization), format_name, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_raw_rows_give_our_features_and_reconstructions_by_the_formula_of_saelens(
    trained: Trained, cache: ActivationCache, tmp_path: Path
) -> None:
    sae = load_sae(trained("feature_choice", "unit"))
    export = export_sae(trained("feature_choice", "unit"), "saelens", tmp_path / "out")
    t = tensors_of(export)
    x = cache.rows(HOOK, torch.arange(100).numpy(), "heldout", "none").double()
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    pre = ((x - mean) / (std + 1e-5) - t["b_dec"]) @ t["W_enc"].double() + t["b_enc"]
    features = pre * (pre > t["threshold"])
    ours = sae.encode(x.float(), input="raw")
    assert isinstance(ours, Tensor)
    torch.testing.assert_close(features.float() / export.feature_factor, ours, atol=1e-4, rtol=1e-3)
    reconstruction = (features @ t["W_dec"].double() + t["b_dec"]) * std + mean
    torch.testing.assert_close(reconstruction.float(), sae(x.float(), input="raw"), atol=1e-3, rtol=1e-3)


def test_scale_goes_into_biases_and_leaves_the_dictionary(trained: Trained, tmp_path: Path) -> None:
    sae = load_sae(trained("batch_topk", "scale"))
    export = export_sae(trained("batch_topk", "scale"), "dictionary_learning", tmp_path / "out")
    t = tensors_of(export)
    assert export.feature_factor == pytest.approx(1 / sae.normalizer.scale)
    assert sae.threshold is not None
    torch.testing.assert_close(t["threshold"] * sae.normalizer.scale, sae.threshold)
    assert torch.equal(t["decoder.weight"].T, sae.W_dec)


def test_norms_of_a_free_decoder_go_into_the_features_of_dictionary_learning(
    cache: ActivationCache, tmp_path: Path
) -> None:
    folder = free_relu(cache, tmp_path / "run")
    sae = load_sae(folder)
    assert float((sae.W_dec.norm(dim=1) - 1).abs().max()) > 0.01
    assert int((sae.W_dec.norm(dim=1) == 0).sum()) == 14
    export = export_sae(folder, "dictionary_learning", tmp_path / "out", cache=cache)
    assert export.features_times_decoder_norm
    norm = tensors_of(export)["decoder.weight"].norm(dim=0)
    torch.testing.assert_close(norm, torch.ones(F))  # or else its loader would change the features


def test_nested_prefixes_are_named(trained: Trained, tmp_path: Path) -> None:
    folder = trained("matryoshka_batch_topk", "scale")
    export_sae(folder, "saelens", tmp_path / "a")
    metadata = json.loads((tmp_path / "a" / "cfg.json").read_text())["metadata"]
    assert metadata["matryoshka_widths"] == [3, 9, 21, 45, 96]
    export = export_sae(folder, "dictionary_learning", tmp_path / "b")
    assert tensors_of(export)["group_sizes"].tolist() == [3, 6, 12, 24, 51]
