"""The unembedding is read as the model itself computes logits, whatever its norm is called and stores."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig

from saecache.common.errors import UsageError
from saecache.harvest import LanguageModel
from saecache.harvest.model.unembedding import read_unembedding

SMALL = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 2, "vocab_size": 40}
FAMILIES = {
    "neox": (GPTNeoXConfig(intermediate_size=32, max_position_embeddings=16, **SMALL), True),
    "gpt2": (GPT2Config(n_layer=2, n_embd=24, n_head=2, vocab_size=40, n_positions=16), True),
    "llama": (LlamaConfig(intermediate_size=32, **SMALL), False),
    "gemma": (
        GemmaConfig(intermediate_size=32, head_dim=12, num_key_value_heads=1, **SMALL),
        False,
    ),  # its weight is stored less one
    "opt": (
        OPTConfig(ffn_dim=32, max_position_embeddings=16, word_embed_proj_dim=24, **SMALL),
        True,
    ),
    "odd": (
        LlamaConfig(
            intermediate_size=32, **{**SMALL, "hidden_size": 25, "num_attention_heads": 1}, head_dim=8
        ),
        False,
    ),
}


def make(config) -> LanguageModel:
    torch.manual_seed(0)
    inner = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weights in inner.named_parameters():
            if "norm" in name or "ln_f" in name:
                weights.copy_(torch.randn_like(weights) * 0.5 + 1)
    return LanguageModel(inner, None, name="small", revision=None, weights_sha256="")


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_differences_of_the_models_logits(family: str) -> None:
    """At a fixed scale of the norm, logits of x + e·d less those of x are e times the direction's effects."""
    config, centers = FAMILIES[family]
    model = make(config)
    found = read_unembedding(model)
    assert found.centers == centers
    assert "norm" in found.norm or "ln_f" in found.norm
    width = found.weight.shape[1]
    norm = model.model.get_submodule(found.norm.split()[-1])
    head = model.model.get_output_embeddings()
    direction = torch.nn.functional.normalize(torch.randn(width), dim=0)
    used = direction - direction.mean() if centers else direction
    # Where the norm is scaled to length 1, its output is linear: x and -x differ by the effects alone.
    with torch.no_grad():
        difference = (head(norm(direction[None, None])) - head(norm(-direction[None, None])))[0, 0] / 2
    effect = found.weight @ used / used.square().mean().sqrt()
    assert torch.allclose(difference, effect, rtol=1e-3, atol=1e-3)


def test_a_model_without_output_weights_is_refused() -> None:
    model = make(FAMILIES["llama"][0])
    model.model.lm_head = None
    model.model.get_output_embeddings = lambda: None
    with pytest.raises(UsageError, match="no output weights"):
        read_unembedding(model)
