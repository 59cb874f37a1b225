"""A forward that goes on from a hook gives the bits of a whole one, and does not run the blocks before it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from saecache.harvest import LanguageModel
from saecache.harvest.model.hook_points import find_blocks

CLASSES = ["neox", "gpt2", "llama", "qwen3", "mistral", "gemma2", "gemma3n", "olmo2", "opt", "llama4"]
HOOKS = {
    "resid_pre.2": 2,
    "attn_out.2": 2,
    "mlp_out.2": 2,
    "resid_post.2": 3,
    "resid_post.3": 4,
}  # -> skipped
IDS = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(0))
REPLACEMENTS = (torch.zeros_like, lambda x: x.clone(), lambda x: 2 * x, torch.ones_like)

Load = Callable[[str], LanguageModel]


@pytest.fixture
def load(model_folder: Callable[[str], Path]) -> Load:
    return lambda name: LanguageModel.load(str(model_folder(name)), dtype="float32", device="cpu")


def blocks_of(model: LanguageModel) -> nn.ModuleList:
    found = find_blocks(model.model, model.num_layers)
    assert found is not None
    return found[1]


@contextmanager
def counting(model: LanguageModel) -> Iterator[list[int]]:
    """The numbers of the blocks whose own code runs, in order."""
    ran: list[int] = []
    first = [next(m for m in block.modules() if not list(m.children())) for block in blocks_of(model)]
    handles = [
        module.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, module in enumerate(first)
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_goes_on_with_the_same_bits(name: str, load: Load) -> None:
    model = load(name)
    for hook in HOOKS:
        if name == "gemma3n" and not hook.startswith("resid"):
            continue  # it has no such hooks
        resumed = model.resumed_at(IDS, hook)
        for replace in REPLACEMENTS:
            assert torch.equal(resumed(replace), model.logits_with(IDS, hook, replace)), hook
    for block in blocks_of(model):
        assert "forward" not in vars(block) and not block._forward_hooks


@pytest.mark.parametrize("hook", HOOKS)
def test_the_blocks_before_the_hook_run_once(hook: str, load: Load) -> None:
    model = load("llama")
    resumed = model.resumed_at(IDS, hook)
    for call, replace in enumerate(REPLACEMENTS):
        with counting(model) as ran:
            resumed(replace)
        assert sorted(set(ran)) == list(range(HOOKS[hook] if call else 0, 4))


def test_a_place_outside_the_blocks_or_before_them_runs_whole_forwards(load: Load) -> None:
    model = load("llama")
    for hook in ("resid_pre.0", "model.embed_tokens", "model.norm"):
        resumed = model.resumed_at(IDS, hook)
        for replace in REPLACEMENTS:
            with counting(model) as ran:
                found = resumed(replace)
            assert sorted(set(ran)) == [0, 1, 2, 3]
            assert torch.equal(found, model.logits_with(IDS, hook, replace))


def test_blocks_that_read_more_than_the_stream_run_again(load: Load) -> None:
    """The last block adds what the first one gave: without the first it would go wrong."""
    model, given = load("llama"), {}
    first, *_, last = blocks_of(model)
    first.mlp.register_forward_hook(lambda _m, _i, output: given.update(first=output))
    last.register_forward_hook(lambda _m, _i, output: output + given.pop("first"))
    resumed = model.resumed_at(IDS, "resid_post.1")
    for replace in REPLACEMENTS:
        with counting(model) as ran:
            found = resumed(replace)
        assert sorted(set(ran)) == [0, 1, 2, 3]
        assert torch.equal(found, model.logits_with(IDS, "resid_post.1", replace))


def test_a_block_that_works_in_place_finds_what_it_found_before(load: Load) -> None:
    model = load("llama")
    third = blocks_of(model)[2]
    third.register_forward_pre_hook(
        lambda _m, args, kwargs: ((args[0].mul_(1.5), *args[1:]), kwargs), with_kwargs=True
    )
    resumed = model.resumed_at(IDS, "attn_out.2")
    for call, replace in enumerate(REPLACEMENTS):
        with counting(model) as ran:
            found = resumed(replace)
        assert sorted(set(ran)) == list(range(2 if call else 0, 4)), "it need not run whole forwards"
        assert torch.equal(found, model.logits_with(IDS, "attn_out.2", replace))


def test_what_fails_leaves_the_model_as_it_was(load: Load) -> None:
    model = load("llama")
    resumed = model.resumed_at(IDS, "resid_post.1")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            resumed(lambda _: 1 / 0)
        for block in blocks_of(model):
            assert "forward" not in vars(block) and not block._forward_hooks
        wanted = model.logits_with(IDS, "resid_post.1", torch.zeros_like)
        assert torch.equal(resumed(torch.zeros_like), wanted)


def test_a_model_whose_blocks_another_library_runs_is_left_alone(load: Load) -> None:
    """accelerate replaces the forward of blocks that lie on several devices."""
    model = load("llama")
    block = blocks_of(model)[0]
    block.forward = block.forward
    resumed = model.resumed_at(IDS, "resid_post.1")
    for replace in REPLACEMENTS:
        with counting(model) as ran:
            resumed(replace)
        assert sorted(set(ran)) == [0, 1, 2, 3]
