"""Every layout computes what plain formulas say; what cannot be represented is refused with the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saecache
from saecache.common.errors import UsageError
from saecache.train import SAE, load_sae
from saecache.train.foreign import from_dictionary_learning, from_gemma_scope, from_saelens, from_sparsify
from saecache.train.foreign.building import imported_from
from saecache.train.foreign.formats import FORMATS

from .layouts import D, F, K, Layout, layouts, parts, rows

LAYOUTS = layouts()
FORMAT_OF = {"dictionary": "dictionary_learning", "gemma": "gemma_scope", "llama": "llama_scope"}


def load(layout: Layout, folder: Path) -> SAE:
    return from_saelens(folder, **layout.settings) if layout.settings else load_sae(folder)


def close(got: Tensor, expected: Tensor) -> bool:
    return torch.allclose(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_and_reconstructions_are_those_of_the_formulas(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    sae, x = load(layout, layout.write(tmp_path)), rows()
    features, reconstruction = layout.forward(x)
    assert close(sae.encode(x, input="raw"), features)
    assert close(sae(x, input="raw"), reconstruction)
    assert 0 < (features != 0).float().mean() < 0.7
    word = name.partition("_")[0]
    assert imported_from(sae.cfg) == FORMAT_OF.get(word, word)
    assert (sae.cfg.hook, sae.cfg.d_model, sae.cfg.num_latents) == (layout.hook, D, F)
    assert sae.cfg.cache["fingerprint"] is None


@pytest.mark.parametrize("name", LAYOUTS)
def test_saved_here_it_is_an_sae_of_ours(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    sae = load(layout, layout.write(tmp_path / "theirs"))
    sae.save(tmp_path / "ours")
    again = load_sae(tmp_path / "ours")
    assert torch.equal(again.encode(rows(), input="raw"), sae.encode(rows(), input="raw"))
    assert again.cfg == sae.cfg


def test_every_format_has_a_layout_and_a_public_loader() -> None:
    words = {FORMAT_OF.get(name.partition("_")[0], name.partition("_")[0]) for name in LAYOUTS}
    assert words == set(FORMATS)
    assert all(getattr(saecache, f"from_{name}") is FORMATS[name].load for name in FORMATS)


def test_half_precision_and_a_config_of_version_5(tmp_path: Path) -> None:
    layout = layouts()["saelens_topk"]
    layout.tensors = {name: t.bfloat16() for name, t in layout.tensors.items()}
    layout.configs["cfg.json"] = {
        "d_in": D, "d_sae": F, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K},
        "hook_name": "blocks.3.hook_mlp_out", "model_name": "toy", "normalize_activations": False,
    }  # fmt: skip
    sae = load_sae(layout.write(tmp_path))
    assert sae.cfg.hook == "mlp_out.3" and sae.cfg.cache["model_name"] == "toy"
    assert torch.equal(sae.W_dec, parts()["W_dec"].bfloat16().float())
    assert sae.cfg.k == K


def test_a_latent_with_an_infinite_threshold_is_never_active(tmp_path: Path) -> None:
    layout = layouts()["saelens_jumprelu"]
    layout.tensors["threshold"] = torch.full((F,), torch.inf)
    sae = load_sae(layout.write(tmp_path / "theirs"))
    sae.save(tmp_path / "ours")
    assert not load_sae(tmp_path / "ours").encode(rows(), input="raw").any()


def test_the_hook_is_what_the_user_says(tmp_path: Path) -> None:
    folder = LAYOUTS["sparsify"].write(tmp_path)
    assert from_sparsify(folder, hook="mlp_out.7").cfg.hook == "mlp_out.7"
    (tmp_path / "run" / "config.json").write_text('{"model": "EleutherAI/pythia-160m"}')
    assert from_sparsify(folder).cfg.cache["model_name"] == "EleutherAI/pythia-160m"


@pytest.mark.parametrize(
    ("trainer", "buffer", "hook"),
    [
        ({"submodule_name": "resid_post.5"}, {}, "resid_post.5"),
        ({"submodule_name": "mlp_out_layer_5"}, {}, "mlp_out.5"),
        ({"submodule_name": "attention_out", "layer": 4}, {}, "attn_out.4"),
        ({"submodule_name": "gpt_neox.layers.5.mlp"}, {}, "mlp_out.5"),
        ({"submodule_name": None, "layer": 4}, {"io": "in"}, "resid_pre.4"),
        ({"submodule_name": None, "layer": 4}, {"io": "out"}, "resid_post.4"),
        ({"submodule_name": "something"}, {}, "something"),
        ({"submodule_name": None, "layer": None}, {}, "unknown"),
    ],
)
def test_hooks_of_dictionary_learning(trainer: Any, buffer: Any, hook: str, tmp_path: Path) -> None:
    layout = layouts()["dictionary_relu"]
    config = layout.configs["config.json"]
    config["trainer"] |= trainer
    config["buffer"] |= buffer
    assert load_sae(layout.write(tmp_path)).cfg.hook == hook


def test_gemma_scope_asks_for_the_hook_where_the_path_does_not_say_it(tmp_path: Path) -> None:
    layout = layouts()["gemma_scope"]
    layout.folder = "somewhere"
    folder = layout.write(tmp_path)
    with pytest.raises(UsageError, match=r"does not say which hook .* hook='resid_post.20'"):
        load_sae(folder)
    assert from_gemma_scope(folder, hook="resid_post.3").cfg.hook == "resid_post.3"
    layout.folder = "models--google--gemma-scope-9b-pt-mlp/snapshots/0a1b/layer_12/width_16k/average_l0_7"
    sae = load_sae(layout.write(tmp_path))
    assert (sae.cfg.hook, sae.cfg.cache["model_name"]) == ("mlp_out.12", "gemma-2-9b")


def change_config(name: str, **values: Any) -> Callable[[Layout], None]:
    def change(layout: Layout) -> None:
        layout.configs[name] |= values

    return change


def change_trainer(**values: Any) -> Callable[[Layout], None]:
    return lambda layout: layout.configs["config.json"]["trainer"].update(values)


def change_tensor(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Layout], None]:
    def change(layout: Layout) -> None:
        layout.tensors[name] = make(layout.tensors.get(name, torch.zeros(3)))

    return change


LENS, RUN, SCOPE = "cfg.json", "config.json", "hyperparams.json"
AVERAGE, SITE = "expected_average_only_in", "a\x1b[2J"
REFUSED: list[tuple[str, Callable[[Layout], Any], str]] = [
    ("saelens_standard", change_config(LENS, architecture="temporal"), "architecture 'temporal'"),
    ("saelens_standard", change_config(LENS, architecture="batchtopk"), "saved by save_inference_model"),
    ("saelens_standard", change_config(LENS, normalize_activations="whitening"), "fold_activation_wh"),
    ("saelens_standard", change_config(LENS, normalize_activations=AVERAGE), "scaling_factor="),
    ("saelens_standard", change_config(LENS, reshape_activations="rows"), "reshapes activations by 'rows'"),
    ("saelens_standard", change_config(LENS, d_in=D + 1), r"W_enc should be floats \[13, 40\], got"),
    ("saelens_standard", change_config(LENS, d_sae=-1), "d_sae should be a positive whole number, got -1"),
    ("saelens_standard", change_config(LENS, d_sae=True), "d_sae should be a positive .* got True"),
    ("saelens_standard", change_tensor("scaling_factor", lambda t: t + 2), "is not 1 everywhere"),
    ("saelens_standard", change_tensor("W_skip", lambda t: t), "not known here: W_skip"),
    ("saelens_standard", change_tensor("b_enc", lambda t: t * torch.nan), "b_enc is not finite"),
    ("saelens_standard", change_tensor("b_enc", lambda t: t.int()), "b_enc should be floats"),
    ("saelens_topk", change_config(LENS, k=F + 1), "k should be a .* of at most 40, got 41"),
    ("saelens_rescaled", change_tensor("W_dec", torch.zeros_like), "and some are 0"),
    ("saelens_jumprelu", change_tensor("threshold", lambda t: t * torch.nan), "threshold is not finite"),
    ("saelens_jumprelu", lambda layout: layout.tensors.pop("threshold"), "lacks the tensor threshold"),
    ("dictionary_relu", change_trainer(dict_class="IdentityDict"), "class 'IdentityDict', which has no"),
    ("dictionary_relu", change_trainer(dict_size=F + 1), "dict_size 40, and its config says 41"),
    ("dictionary_relu", change_config(RUN, trainer=[]), "should hold a mapping called trainer"),
    ("dictionary_batch", change_trainer(k=K + 1), f"has k={K}, and its config says {K + 1}"),
    ("dictionary_nested", change_tensor("group_sizes", lambda t: t + 1), f"should sum to the {F} latents"),
    ("sparsify", change_config(LENS, activation="groupmax"), "selects by 'groupmax', which has no"),
    ("sparsify", change_config(LENS, signed=True), "selects by 'topk', signed, which"),
    ("sparsify", change_config(LENS, transcode=True), "is a transcoder"),
    ("sparsify", change_tensor("W_skip", lambda t: t), "not known here: W_skip"),
    ("gemma_scope_2", change_config(RUN, architecture="relu"), "should be 'jump_relu', got 'relu'"),
    ("gemma_scope_2", change_config(RUN, hf_hook_point_out="model.layers.3.mlp.output"), "is a transcoder"),
    ("gemma_scope_2", change_tensor("affine_skip_connection", lambda t: t), "is a transcoder"),
    ("llama_scope", change_config(SCOPE, act_fn="topk"), "with jumprelu, got 'topk'"),
    ("llama_scope", change_config(SCOPE, norm_activation="token-wise"), "'token-wise' has no"),
    ("llama_scope", change_config(SCOPE, jump_relu_threshold=0), "threshold should be a pos"),
    ("llama_scope", change_config(SCOPE, hook_point_in=SITE, hook_point_out=SITE), "cannot be shown"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_what_cannot_be_represented_is_refused(
    name: str, change: Callable[[Layout], Any], message: str, tmp_path: Path
) -> None:
    layout = layouts()[name]
    change(layout)
    with pytest.raises(UsageError, match=message):
        load_sae(layout.write(tmp_path))


@pytest.mark.parametrize(
    ("factor", "message"), [(0.0, "must be a positive number"), (float("nan"), "must be a pos")]
)
def test_a_scaling_factor_is_a_positive_number(factor: float, message: str, tmp_path: Path) -> None:
    folder = LAYOUTS["saelens_average_norm"].write(tmp_path)
    with pytest.raises(UsageError, match=message):
        from_saelens(folder, scaling_factor=factor)
    with pytest.raises(UsageError, match="scaling_factor has no effect"):
        from_saelens(LAYOUTS["saelens_topk"].write(tmp_path / "other"), scaling_factor=2.0)


def test_a_folder_without_an_sae_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="or a folder of saelens, sparsify, dictionary_learning, gemma_scope"
    ):
        load_sae(tmp_path)
    folder = LAYOUTS["dictionary_topk"].write(tmp_path / "there")
    (folder / "ae.pt").unlink()
    with pytest.raises(UsageError, match="no SAE in"):
        load_sae(folder)
    shutil.copytree(LAYOUTS["dictionary_topk"].write(tmp_path / "again"), folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK"}}))
    with pytest.raises(UsageError, match="k should be a positive whole number of at most 40, got None"):
        from_dictionary_learning(folder)


def test_shapes_are_compared_before_anything_is_read(tmp_path: Path) -> None:
    layout = layouts()["saelens_standard"]
    layout.configs["cfg.json"] |= {"d_in": 2**40, "d_sae": 2**20}
    with pytest.raises(UsageError, match=r"W_enc should be floats \[1099511627776, 1048576\], got float32"):
        load_sae(layout.write(tmp_path))
