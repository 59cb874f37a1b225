"""Run by an interpreter that has the other libraries (see test_peers.py): SAEs of random weights, saved by
their own code, with what their own code computes.

A case is a folder ``sae`` and ``expected.safetensors``: raw rows x [B, D], features [B, F], reconstruction
[B, D]. ``case.json`` has what the loader is to be told.
"""

import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, F, K, ROWS = 48, 160, 9, 256


def rows(case: str) -> Tensor:
    random = torch.Generator().manual_seed(len(case))
    sizes = torch.rand(ROWS, 1, generator=random) + 0.5
    return 3 * sizes * torch.randn(ROWS, D, generator=random) + torch.randn(D, generator=random)


def randomize(module: Any) -> None:
    """Random weights in every parameter; decoder rows of norms of their own where nothing forbids it."""
    random = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        scale = 0.3 if parameter.dim() == 2 else 0.2
        parameter.data = scale * torch.randn(parameter.shape, generator=random)
        if "threshold" in name:
            parameter.data = 0.4 * torch.rand(parameter.shape, generator=random) - 0.05  # some below 0


def write(out: Path, case: str, x: Tensor, features: Tensor, reconstruction: Tensor, **told: Any) -> None:
    tensors = {"x": x, "features": features, "reconstruction": reconstruction}
    save_file(
        {n: t.detach().float().contiguous() for n, t in tensors.items()}, out / case / "expected.safetensors"
    )
    (out / case / "case.json").write_text(json.dumps(told))


def saelens(out: Path) -> None:
    from sae_lens import SAE
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "standard": (StandardSAE, StandardSAEConfig, {}),
        "topk": (TopKSAE, TopKSAEConfig, {"k": K}),
        "topk_rescaled": (TopKSAE, TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
        "gated": (GatedSAE, GatedSAEConfig, {}),
    }
    for kind, (make, config, settings) in kinds.items():
        for normalize in ("none", "constant_norm_rescale", "layer_norm", "expected_average_only_in"):
            for subtracts in (True, False):
                case = f"saelens.{kind}.{normalize}.{'b_dec' if subtracts else 'no_b_dec'}"
                cfg = config(
                    d_in=D,
                    d_sae=F,
                    normalize_activations=normalize,
                    apply_b_dec_to_input=subtracts,
                    **settings,
                )
                cfg.metadata.hook_name = "blocks.3.hook_resid_post"
                cfg.metadata.model_name = "toy"
                sae = make(cfg)
                randomize(sae)
                sae.save_model(out / case / "sae")
                sae, x, told = SAE.load_from_disk(out / case / "sae"), rows(case), {}
                if normalize == "expected_average_only_in":
                    factor = math.sqrt(D) / float(x.norm(dim=1).mean())
                    sae.fold_activation_norm_scaling_factor(factor)
                    told = {"scaling_factor": factor}
                write(out, case, x, sae.encode(x), sae(x), hook="resid_post.3", **told)


def dictionary_learning(out: Path) -> None:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    from dictionary_learning.utils import load_dictionary

    made = {
        "AutoEncoder": dictionary.AutoEncoder(D, F),
        "AutoEncoderNew": dictionary.AutoEncoderNew(D, F),
        "AutoEncoderTopK": AutoEncoderTopK(D, F, K),
        "BatchTopKSAE": BatchTopKSAE(D, F, K),
        "BatchTopKSAE_without_threshold": BatchTopKSAE(D, F, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D, F, K, [F // 4, F // 4, F - 2 * (F // 4)]),
        "GatedAutoEncoder": dictionary.GatedAutoEncoder(D, F),
        "JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder(D, F),
    }
    for name, sae in made.items():
        case, dict_class = f"dictionary_learning.{name}", name.removesuffix("_without_threshold")
        randomize(sae)
        if dict_class in ("AutoEncoder",):  # scaled to norm 1 when it is loaded
            sae.decoder.weight.data /= sae.decoder.weight.data.norm(dim=0)
        if "threshold" in dict(sae.named_buffers()) and name == dict_class:
            sae.threshold.fill_(0.7)
        folder = out / case / "sae"
        folder.mkdir(parents=True)
        torch.save(sae.state_dict(), folder / "ae.pt")
        trainer = {
            "dict_class": dict_class,
            "activation_dim": D,
            "dict_size": F,
            "layer": 3,
            "lm_name": "toy",
        }
        trainer |= {"submodule_name": "resid_post_layer_3", "k": K}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 16}}))
        loaded = load_dictionary(str(folder), device="cpu")[0] if dict_class != "GatedAutoEncoder" else sae
        x = rows(case)
        write(out, case, x, loaded.encode(x), loaded(x), hook="resid_post.3")


def sparsify(out: Path) -> None:
    from sparsify import SparseCoder, SparseCoderConfig

    for hookpoint, hook in {"layers.3": "resid_post.3", "h.3.mlp": "mlp_out.3"}.items():
        for dtype in (torch.float32, torch.bfloat16):
            case = f"sparsify.{hookpoint}.{str(dtype).removeprefix('torch.')}"
            sae = SparseCoder(D, SparseCoderConfig(num_latents=F, k=K))
            randomize(sae)
            folder = out / case / "sae" / hookpoint
            sae.to(dtype).save_to_disk(folder)
            sae, x = SparseCoder.load_from_disk(folder).float(), rows(case)
            found = sae(x)
            features = torch.zeros(ROWS, F).scatter_(1, found.latent_indices, found.latent_acts)
            write(out, case, x, features, found.sae_out, hook=hook, folder=hookpoint)


def gemma_and_llama_scope(out: Path) -> None:
    """Layouts of the Hub, loaded by SAELens's own code, which is handed local files for downloads."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    where: dict[str, Path] = {}

    def local(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        return str(where["root"] / (f"{subfolder}/{filename}" if subfolder else filename))

    loaders.hf_hub_download = local  # type: ignore[attr-defined]
    source = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=F))
    randomize(source)
    t = {name: value.detach() for name, value in source.state_dict().items()}

    case, folder = "gemma_scope", "layer_3/width_16k/average_l0_7"
    repo = "gemma-scope-2b-pt-res"
    where["root"] = out / case / "sae" / repo
    (where["root"] / folder).mkdir(parents=True)
    arrays = {name.replace("W_", "w_"): value.numpy() for name, value in t.items()}
    np.savez(where["root"] / folder / "params.npz", **arrays)
    config, state, _ = loaders.gemma_2_sae_huggingface_loader(
        f"google/{repo}", folder, cfg_overrides={"d_in": D, "d_sae": F}
    )
    check_scope(out, case, SAE, loaders, config, state, None, f"{repo}/{folder}")

    case, folder = "llama_scope", "Llama3_1-8B-Base-L3R-8x"
    where["root"] = out / case / "sae"
    (where["root"] / folder / "checkpoints").mkdir(parents=True)
    norm = float(rows(case).norm(dim=1).mean())
    hyperparams = {
        "d_model": D,
        "d_sae": F,
        "jump_relu_threshold": 0.5,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "hook_point_in": "blocks.3.hook_resid_post",
        "hook_point_out": "blocks.3.hook_resid_post",
        "apply_decoder_bias_to_pre_encoder": False,
    }
    (where["root"] / folder / "hyperparams.json").write_text(json.dumps(hyperparams))
    linear = {
        "encoder.weight": t["W_enc"].T,
        "decoder.weight": t["W_dec"].T,
        "encoder.bias": t["b_enc"],
        "decoder.bias": t["b_dec"],
    }
    save_file(
        {n: v.bfloat16().contiguous() for n, v in linear.items()},
        where["root"] / folder / "checkpoints" / "final.safetensors",
    )
    config, state, _ = loaders.llama_scope_sae_huggingface_loader(
        "fnlp/Llama3_1-8B-Base-LXR-8x", folder, cfg_overrides={"dtype": "float32"}
    )
    check_scope(out, case, SAE, loaders, config, state, math.sqrt(D) / norm, folder)


def check_scope(
    out: Path,
    case: str,
    sae_class: Any,
    loaders: Any,
    config: Any,
    state: Any,
    factor: float | None,
    folder: str,
) -> None:
    config = loaders.handle_config_defaulting(config)
    made = sae_class.get_sae_class_for_architecture("jumprelu")(
        sae_class.get_sae_config_class_for_architecture("jumprelu").from_dict(config)
    )
    made.load_state_dict(state)
    if factor is not None:
        made.fold_activation_norm_scaling_factor(factor)
    x = rows(case)
    write(out, case, x, made.encode(x), made(x), hook="resid_post.3", folder=folder)


@torch.no_grad()
def main() -> None:
    out = Path(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        for make in (saelens, dictionary_learning, sparsify, gemma_and_llama_scope):
            make(out)


if __name__ == "__main__":
    main()
