"""Every hook of every model class against what transformers itself says and against hooks placed by hand."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from saecache.common.errors import UsageError
from saecache.harvest import LanguageModel
from saecache.harvest.model.hook_points import HookPoint, find_blocks
from saecache.harvest.model.hooks import watched

CLASSES = ["neox", "neox_sequential", "gpt2", "llama", "qwen3", "mistral", "gemma2", "olmo2", "opt", "llama4"]
BLOCKS = {
    "neox": "gpt_neox.layers",
    "neox_sequential": "gpt_neox.layers",
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
}
HALVES = {  # class -> (module whose output is added after attention, and after the MLP)
    "neox": ("attention", "mlp"),
    "neox_sequential": ("attention", "mlp"),
    "gpt2": ("attn", "mlp"),
    "opt": ("self_attn", "fc2"),
    "llama4": ("self_attn", "feed_forward"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
# class -> (module whose input is the stream between attention and MLP, module whose input the MLP reads).
MIDDLES = {
    "gpt2": ("ln_2", "mlp"),
    "opt": ("final_layer_norm", "fc1"),
    "llama4": ("post_attention_layernorm", "feed_forward"),
    "gemma2": ("pre_feedforward_layernorm", "mlp"),
    "olmo2": ("mlp", "mlp"),
}
NUM_LAYERS = 4


@pytest.fixture(scope="module", params=CLASSES)
def loaded(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> tuple[str, LanguageModel]:
    folder = model_folder(request.param)
    return request.param, LanguageModel.load(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def neox(model_folder: Callable[[str], Path]) -> LanguageModel:
    return LanguageModel.load(str(model_folder("neox")), dtype="float32", device="cpu")


IDS = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(0))


def by_hand(model: nn.Module, module_path: str, *, read_input: bool = False) -> torch.Tensor:
    """Output (or input) [n, T, D] of a module in a whole forward, by PyTorch's own hook. Some give rows [n *
    T, D].
    """
    seen = []

    def keep(_m: nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> None:
        value = inputs if read_input else output
        seen.append(value[0] if isinstance(value, tuple) else value)

    handle = model.get_submodule(module_path).register_forward_hook(keep)
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    handle.remove()
    return seen[0].reshape(*IDS.shape, -1) if seen[0].ndim == 2 else seen[0]


def test_residual_stream_is_hidden_states(loaded: tuple[str, LanguageModel]) -> None:
    _, lm = loaded
    with torch.no_grad():
        states = lm.model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
    hooks = [f"resid_pre.{i}" for i in range(NUM_LAYERS)] + [f"resid_post.{i}" for i in range(NUM_LAYERS)]
    found = lm.activations(IDS, hooks)
    for i in range(NUM_LAYERS):
        torch.testing.assert_close(found[f"resid_pre.{i}"], states[i], rtol=0, atol=0)
        if i + 1 < NUM_LAYERS:  # the last hidden state is after the final norm
            torch.testing.assert_close(found[f"resid_post.{i}"], states[i + 1], rtol=0, atol=0)
    last = found[f"resid_post.{NUM_LAYERS - 1}"]
    assert not torch.allclose(last, states[-1], atol=1e-3)
    ends = ("norm", "ln_f", "final_layer_norm")
    norms = [
        module
        for path, module in lm.model.named_modules()
        if path.rsplit(".")[-1] in ends and not any(part.isdigit() for part in path.split("."))
    ]
    torch.testing.assert_close(norms[0](last), states[-1], rtol=1e-5, atol=1e-5)


def test_halves_are_what_the_block_adds(loaded: tuple[str, LanguageModel]) -> None:
    name, lm = loaded
    blocks = BLOCKS.get(name, "model.layers")
    attention, mlp = HALVES.get(name, ("self_attn", "mlp"))
    for layer in (0, 2, NUM_LAYERS - 1):
        kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        found = lm.activations(IDS, [f"{kind}.{layer}" for kind in kinds])
        before, attn, ff, after = (found[f"{kind}.{layer}"] for kind in kinds)
        assert torch.equal(attn, by_hand(lm.model, f"{blocks}.{layer}.{attention}"))
        assert torch.equal(ff, by_hand(lm.model, f"{blocks}.{layer}.{mlp}"))
        assert torch.equal(after, by_hand(lm.model, f"{blocks}.{layer}"))
        torch.testing.assert_close(before + attn + ff, after, rtol=1e-5, atol=1e-5)


def test_the_middle_of_a_block_and_what_its_mlp_reads(loaded: tuple[str, LanguageModel]) -> None:
    name, lm = loaded
    blocks = BLOCKS.get(name, "model.layers")
    middle, mlp = MIDDLES.get(name, ("post_attention_layernorm", "mlp"))
    for layer in (0, 2, NUM_LAYERS - 1):
        read = lm.activations(IDS, [f"mlp_in.{layer}"])[f"mlp_in.{layer}"]
        assert torch.equal(read, by_hand(lm.model, f"{blocks}.{layer}.{mlp}", read_input=True))
        if name == "neox":  # parallel: there is no place between the halves
            with pytest.raises(UsageError, match=rf"has no resid_mid.{layer}: .* in parallel; take"):
                lm.widths([f"resid_mid.{layer}"])
            continue
        assert lm.widths([f"resid_mid.{layer}"]) == {f"resid_mid.{layer}": 32}
        names = [f"{kind}.{layer}" for kind in ("resid_pre", "attn_out", "resid_mid")]
        before, attn, mid = lm.activations(IDS, names).values()
        assert torch.equal(mid, by_hand(lm.model, f"{blocks}.{layer}.{middle}", read_input=True))
        torch.testing.assert_close(before + attn, mid, rtol=1e-6, atol=1e-6)


def test_what_the_mlp_reads_gives_what_it_adds(loaded: tuple[str, LanguageModel]) -> None:
    name, lm = loaded
    block = lm.model.get_submodule(f"{BLOCKS.get(name, 'model.layers')}.1")
    found = lm.activations(IDS, ["mlp_in.1", "mlp_out.1"])
    with torch.no_grad():
        if name == "opt":
            out = block.fc2(block.activation_fn(block.fc1(found["mlp_in.1"])))
        else:
            out = getattr(block, MIDDLES.get(name, ("", "mlp"))[1])(found["mlp_in.1"])
        out = out[0] if isinstance(out, tuple) else out
        if name in ("gemma2", "olmo2"):
            out = block.post_feedforward_layernorm(out)
    torch.testing.assert_close(out.reshape(found["mlp_out.1"].shape), found["mlp_out.1"])


def test_replacing_the_middle_changes_both_branches(loaded: tuple[str, LanguageModel]) -> None:
    """The stream goes to the MLP and past it: with no stream left, resid_post is what the MLP adds."""
    name, lm = loaded
    if name == "neox":
        pytest.skip("a parallel block has no resid_mid")
    clean = lm.logits(IDS)
    same = lm.logits_with(IDS, "resid_mid.1", lambda x: x.clone())
    torch.testing.assert_close(same, clean, rtol=1e-4, atol=1e-4)
    seen = {}

    def swap(x: torch.Tensor) -> torch.Tensor:
        seen["mid"] = x
        return 0.5 * x + 1

    changed = lm.logits_with(IDS, "resid_mid.1", swap)
    torch.testing.assert_close(seen["mid"], lm.activations(IDS, ["resid_mid.1"])["resid_mid.1"])
    block = lm.model.get_submodule(f"{BLOCKS.get(name, 'model.layers')}.1")
    # the same by hand: attention's output is moved so that the sum is as wanted
    module = getattr(block, HALVES.get(name, ("self_attn", "mlp"))[0])
    before = lm.activations(IDS, ["resid_pre.1"])["resid_pre.1"]

    def move(_m: nn.Module, _i: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        attn = output[0] if isinstance(output, tuple) else output
        new = 0.5 * (before + attn) + 1 - before
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(move)
    wanted = lm.logits(IDS)
    handle.remove()
    torch.testing.assert_close(changed, wanted)
    assert not torch.allclose(changed, clean, atol=1e-2)
    assert not block._forward_pre_hooks


def test_widths_and_the_block_list(loaded: tuple[str, LanguageModel]) -> None:
    name, lm = loaded
    assert find_blocks(lm.model, NUM_LAYERS)[0] == BLOCKS.get(name, "model.layers")
    assert lm.widths(["resid_pre.0", "attn_out.3", "mlp_out.0"]) == dict.fromkeys(
        ["resid_pre.0", "attn_out.3", "mlp_out.0"], 32
    )


def test_module_paths(neox: LanguageModel) -> None:
    path = "gpt_neox.layers.2.mlp.dense_h_to_4h"
    assert neox.d_model(path) == 64
    assert torch.equal(neox.activations(IDS, [path])[path], by_hand(neox.model, path))
    head = "lm_head" if hasattr(neox.model, "lm_head") else "embed_out"  # as transformers 4 calls it
    assert neox.d_model(head) == 300  # outside the base model: the whole model runs
    torch.testing.assert_close(neox.activations(IDS, [head])[head], neox.logits(IDS))


def test_the_forward_stops_after_the_last_hook(neox: LanguageModel) -> None:
    ran = []
    handles = [
        neox.model.get_submodule(f"gpt_neox.layers.{i}.{half}").register_forward_hook(
            lambda *_, name=f"{half}.{i}": ran.append(name)
        )
        for i in range(NUM_LAYERS)
        for half in ("attention", "mlp")
    ]
    for hooks, expected in [
        (["mlp_out.1", "resid_post.0"], 4),
        (["attn_out.1"], 3),
        (["resid_pre.2"], 4),
        (["resid_pre.0"], 0),
    ]:
        ran.clear()
        neox.activations(IDS, hooks)
        assert len(ran) == expected, (hooks, ran)
    for handle in handles:
        handle.remove()


def test_activations_are_copies_taken_at_the_hook(neox: LanguageModel) -> None:
    """A model that goes on in place must not change what was read."""
    clean = neox.activations(IDS, ["attn_out.1", "resid_post.1"])
    module = neox.model.get_submodule("gpt_neox.layers.1.post_attention_dropout")
    handle = module.register_forward_hook(lambda _m, _i, output: output.mul_(0))
    changed = neox.activations(IDS, ["attn_out.1", "resid_post.1"])
    handle.remove()
    assert torch.equal(changed["attn_out.1"], clean["attn_out.1"])
    assert not torch.equal(changed["resid_post.1"], clean["resid_post.1"])


def test_no_hook_stays_attached(neox: LanguageModel) -> None:
    neox.activations(IDS, ["resid_pre.1", "mlp_out.0"])
    with pytest.raises(ZeroDivisionError):
        neox.read(IDS, ["resid_pre.1"], lambda _hook, _x: 1 / 0)
    neox.logits_with(IDS, "resid_post.0", lambda x: x)
    for module in neox.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("hook", ["resid_pre.1", "resid_post.1", "attn_out.2", "mlp_in.2", "mlp_out.2"])
def test_replacing(loaded: tuple[str, LanguageModel], hook: str) -> None:
    _, lm = loaded
    clean = lm.logits(IDS)
    torch.testing.assert_close(lm.logits_with(IDS, hook, lambda x: x.clone()), clean, rtol=0, atol=0)
    changed = lm.logits_with(IDS, hook, torch.zeros_like)
    assert not torch.allclose(changed, clean, atol=1e-3)
    layer = int(hook[-1])
    if hook.startswith("resid_post"):  # the same place by its other name
        torch.testing.assert_close(changed, lm.logits_with(IDS, f"resid_pre.{layer + 1}", torch.zeros_like))

    def only_last(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, -1] = 0
        return x

    last = lm.logits_with(IDS, hook, only_last)  # causal: the positions before it do not notice
    torch.testing.assert_close(last[:, :-1], clean[:, :-1], rtol=0, atol=0)
    assert not torch.allclose(last[:, -1], clean[:, -1], atol=1e-3)


def test_replacing_with_another_shape(neox: LanguageModel) -> None:
    with pytest.raises(UsageError, match=r"expected shape \(3, 20, 32\), got \(3, 20, 31\)"):
        neox.logits_with(IDS, "resid_post.0", lambda x: x[..., :-1])


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("resid_post.4", r"tiny-neox has 4 blocks, numbered 0 to 3"),
        ("attn_out.17", r"4 blocks"),
        ("resid_midd.1", r"expected resid_post.L, .* Did you mean"),
        ("gpt_neox.layers.1.mpl", r"Did you mean 'gpt_neox.layers.1.mlp'"),
        ("gpt_neox.layers", r"never fires"),
        ("gpt_neox.rotary_emb", r"expected a float tensor \[sequences, positions, width\]"),
    ],
)
def test_hooks_that_cannot_be(neox: LanguageModel, hook: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        neox.widths(["resid_post.0", hook])


def test_a_block_that_does_not_add_up_is_refused(model_folder: Callable[[str], Path]) -> None:
    """Granite multiplies each half before adding it, so the half's output is not what is added."""
    granite = LanguageModel.load(str(model_folder("granite")), dtype="float32", device="cpu")
    assert granite.widths(["resid_pre.1", "resid_post.2"])
    with pytest.raises(UsageError, match="does not add up"):
        granite.widths(["mlp_out.1"])


def test_the_residual_stream_of_gemma_3n_is_the_active_one(model_folder: Callable[[str], Path]) -> None:
    """Its blocks hand on four streams [4, n, T, D]; attention and MLP read the active one."""
    gemma = LanguageModel.load(str(model_folder("gemma3n")), dtype="float32", device="cpu")
    assert gemma.widths(["resid_pre.1", "resid_post.2"]) == {"resid_pre.1": 32, "resid_post.2": 32}
    streams = by_hand(gemma.model, "model.layers.2")
    assert streams.shape == (4, *IDS.shape, 32)
    active = gemma.model.config.altup_active_idx
    assert torch.equal(gemma.activations(IDS, ["resid_post.2"])["resid_post.2"], streams[active])
    assert torch.equal(gemma.activations(IDS, ["resid_pre.3"])["resid_pre.3"], streams[active])
    clean = gemma.logits(IDS)
    assert torch.equal(gemma.logits_with(IDS, "resid_post.1", lambda x: x.clone()), clean)
    changed = gemma.logits_with(IDS, "resid_post.1", torch.zeros_like)
    assert not torch.allclose(changed, clean, atol=1e-3)
    with pytest.raises(UsageError, match=r"does not add up|cannot tell|needed to check"):
        gemma.widths(["mlp_out.1"])


def test_threads_that_run_the_model_at_once_see_their_own_activations(neox: LanguageModel) -> None:
    texts = [(IDS + i) % 300 for i in range(12)]
    alone = [neox.activations(ids, ["mlp_out.2"])["mlp_out.2"] for ids in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda ids: neox.activations(ids, ["mlp_out.2"])["mlp_out.2"], texts))
    assert all(map(torch.equal, alone, together))


def test_a_hook_that_another_thread_removes_during_a_forward_is_left_alone() -> None:
    """Torch then calls it without the keywords that it was registered for."""
    model = nn.Sequential(nn.Linear(4, 4))
    point = HookPoint("mlp_in.0", "0", "input")
    seen: list[torch.Tensor] = []
    watching = watched(model, point, seen.append)

    def remove(*_: object) -> None:
        watching.__exit__(None, None, None)

    handle = model[0].register_forward_pre_hook(remove)
    watching.__enter__()
    with ThreadPoolExecutor(1) as pool:  # its forward removes the hook that this thread added
        pool.submit(model, torch.ones(2, 4)).result()
    handle.remove()
    assert seen == [] and not model[0]._forward_pre_hooks


def test_padding_changes_nothing_before_it(neox: LanguageModel) -> None:
    padded = IDS.clone()
    padded[:, 12:] = -1
    found = neox.activations(padded, ["resid_post.3"])["resid_post.3"]
    whole = neox.activations(IDS, ["resid_post.3"])["resid_post.3"]
    assert torch.equal(found[:, :12], whole[:, :12])
