"""``sae.attach(model)`` on the built-in model: splicing, steering, and that nothing stays behind."""

import numpy as np
import pytest
import torch

from saecache.common.errors import UsageError
from saecache.harvest import LanguageModel
from saecache.train import SAE
from saecache.train.sae_config import HookRows, SAEConfig, SAETarget
from saecache.train.variants.batch_topk import BatchTopK
from saecache.train.variants.gated import Gated
from saecache.train.variants.relu import ReLU
from saecache.train.variants.topk import TopK

HOOK, LATENTS = "resid_post.3", 64


@pytest.fixture(scope="module")
def language_model() -> LanguageModel:
    return LanguageModel.load("builtin:demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def width(language_model: LanguageModel) -> int:
    return language_model.d_model(HOOK)


def make_sae(width: int, kind: str = "unit", hook: str = HOOK) -> SAE:
    variant = TopK(k=4)
    random = torch.Generator().manual_seed(0)
    weights = torch.nn.functional.normalize(torch.randn(LATENTS, width, generator=random), dim=1)
    normalization = {"kind": kind, "d_model": width, "scale": 0.3 if kind == "scale" else 1.0}
    cfg = SAEConfig(
        kind="topk", name="made_up", d_model=width, num_latents=LATENTS, k=4, inference=variant.inference,
        hook=hook, normalization=normalization, variant=variant, cache={}, training={},
    )  # fmt: skip
    zeros = {"b_enc": torch.zeros(LATENTS), "b_dec": 0.01 * torch.randn(width, generator=random)}
    return SAE(cfg, {"W_enc": weights.clone(), "W_dec": weights.clone(), **zeros})


IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.mark.parametrize("kind", ["unit", "scale", "none", "layer_norm", "rms_norm"])
def test_splicing_replaces_by_the_reconstruction(language_model, width: int, kind: str) -> None:
    sae = make_sae(width, kind)
    expected = language_model.logits_with(IDS, HOOK, lambda x: sae(x.float(), input="raw"))
    with sae.attach(language_model.model) as model, torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, expected, atol=1e-4)
    before = language_model.logits(IDS)
    assert not torch.allclose(before, expected, atol=1e-2)


@pytest.mark.parametrize("kind", ["unit", "scale", "none"])
def test_steering_adds_the_latents_direction(language_model, width: int, kind: str) -> None:
    sae = make_sae(width, kind)

    def by_hand(x: torch.Tensor, change) -> torch.Tensor:
        rows = x.reshape(-1, width)
        normalized, removed = sae.normalizer.apply(rows)
        codes = sae.encode(normalized)
        changed = change(codes.clone())
        scale = 1 / sae.normalizer.scale if removed.norm is None else removed.norm
        return (rows + scale * ((changed - codes) @ sae.W_dec)).reshape(x.shape)

    def set_codes(codes: torch.Tensor) -> torch.Tensor:
        codes[:, 5], codes[:, 7] = 3.0, 0.0
        return codes

    def add_codes(codes: torch.Tensor) -> torch.Tensor:
        codes[:, 9] += -1.5
        return codes

    for options, change in (({"steer": {5: 3.0, 7: 0.0}}, set_codes), ({"add": {9: -1.5}}, add_codes)):
        expected = language_model.logits_with(IDS, HOOK, lambda x, change=change: by_hand(x, change))
        with sae.attach(language_model.model, **options) as model, torch.no_grad():
            assert torch.allclose(model(input_ids=IDS).logits, expected, atol=2e-3)


def test_a_latent_that_is_set_can_be_spliced_too(language_model, width: int) -> None:
    sae = make_sae(width)

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        normalized, removed = sae.normalizer.apply(x.reshape(-1, width))
        codes = sae.encode(normalized)
        codes[:, 5] = 2.0
        return sae.normalizer.invert(sae.decode(codes), removed).reshape(x.shape)

    expected = language_model.logits_with(IDS, HOOK, by_hand)
    with sae.attach(language_model.model, steer={5: 2.0}, splice=True) as model, torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, expected, atol=2e-3)


def test_the_model_is_as_before_afterwards_also_after_an_error(language_model, width: int) -> None:
    sae, before = make_sae(width), language_model.logits(IDS)
    with pytest.raises(RuntimeError, match="mine"), sae.attach(language_model.model):
        raise RuntimeError("mine")
    assert torch.equal(language_model.logits(IDS), before)


def test_steering_changes_what_is_generated(language_model, width: int) -> None:
    sae, prompt = make_sae(width), IDS[:1, :8]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    plain = language_model.model.generate(prompt, **options)
    with sae.attach(language_model.model, add={0: 0.0}) as model:
        same = model.generate(prompt, **options)
    with sae.attach(language_model.model, steer={0: 50.0}) as model:
        steered = model.generate(prompt, **options)
    assert torch.equal(plain, same)
    assert not torch.equal(plain, steered)


def test_what_cannot_be_attached_is_refused(language_model, width: int) -> None:
    sae, model = make_sae(width), language_model.model
    for options, message in (
        ({"steer": {LATENTS: 1.0}}, "expected a latent from 0 to 63"),
        ({"add": {-1: 1.0}}, "expected a latent from 0 to 63"),
        ({"steer": {0: float("nan")}}, "finite value"),
        ({"steer": {0: 1.0}, "add": {0: 1.0}}, r"latents \[0\] are both set"),
        ({"hook": "resid_post.99"}, "resid_post.99"),
    ):
        with pytest.raises(UsageError, match=message), sae.attach(model, **options):
            pass
    with (
        make_sae(width + 1).attach(model),
        pytest.raises(UsageError, match=f"of width {width + 1}, and {HOOK}"),
    ):
        model(input_ids=IDS)


def test_inspect_prints_tokens_with_their_strongest_latents(language_model, width: int, tmp_path) -> None:
    import json

    from typer.testing import CliRunner

    from saecache.cli import app

    sae = make_sae(width)
    facts = {"name": "builtin:demo", "dtype": "float32", "weights_sha256": language_model.weights_sha256}
    SAE(sae.cfg.model_copy(update={"cache": {"model": facts}}), dict(sae.named_buffers())).save(
        tmp_path / "sae"
    )
    text = "def main():\n    return 1"
    command = ["inspect", str(tmp_path / "sae"), text, "--top", "2", "--device", "cpu"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert "".join(token["text"] for token in found["tokens"]) == text
    ids = language_model.tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = [] if language_model.tokenizer.bos_token_id is None else [language_model.tokenizer.bos_token_id]
    x = language_model.activations(torch.tensor([[*bos, *ids]]), [HOOK])[HOOK][0, len(bos) :]
    codes = sae.encode(x, input="raw").numpy()
    lines = shown.stdout.splitlines()[2:]
    assert len(lines) == len(ids) == len(found["tokens"])
    without = json.loads(CliRunner().invoke(app, [*command, "--json", "--no-bos"]).stdout)
    x = language_model.activations(torch.tensor([ids]), [HOOK])[HOOK][0]
    strongest = sae.encode(x, input="raw").abs().max(1).values
    shown_there = [abs(token["latents"][0]["activation"]) for token in without["tokens"]]
    assert shown_there == pytest.approx(strongest.tolist(), rel=1e-5)
    assert without != found, "BOS changes the activations"
    for line, token, row in zip(lines, found["tokens"], codes, strict=True):
        best = np.argsort(-np.abs(row), kind="stable")[:2]
        assert [latent["index"] for latent in token["latents"]] == best.tolist()
        assert token["active"] == (row != 0).sum()
        assert f"{best[0]}:{row[best[0]]:.3g}" in line
        assert line.startswith(repr(token["text"]))


def test_inspect_refuses_another_model_and_an_sae_without_one(language_model, width: int, tmp_path) -> None:
    from typer.testing import CliRunner

    from saecache.cli import app

    sae = make_sae(width)
    sae.save(tmp_path / "a" / "sae")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "a" / "sae"), "x"])
    assert result.exit_code == 2
    assert "say which with --model" in result.stderr
    facts = {"name": "./moved", "dtype": "float32", "weights_sha256": "0" * 64}
    moved = SAE(sae.cfg.model_copy(update={"cache": {"model": facts}}), dict(sae.named_buffers()))
    moved.save(tmp_path / "moved")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "moved"), "x"])
    assert result.exit_code == 2
    assert "there is no such folder. If the model is in a folder, say where: --model FOLDER" in result.stderr
    facts = {"name": "builtin:demo", "dtype": "float32", "weights_sha256": "0" * 64}
    SAE(sae.cfg.model_copy(update={"cache": {"model": facts}}), dict(sae.named_buffers())).save(
        tmp_path / "b"
    )
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "b"), "x", "--device", "cpu"])
    assert result.exit_code == 2
    assert "is not the model of SAE made_up" in result.stderr


def make_transcoder(language_model, *, skip: bool = False, encoded: str = "mlp_in.3") -> SAE:
    random = torch.Generator().manual_seed(0)
    D, out = (language_model.d_model(hook) for hook in (encoded, "mlp_out.3"))
    variant = TopK(k=4)
    normalization = {"kind": "unit_scale", "d_model": out, "scale": 0.5}
    cfg = SAEConfig(
        format_version=2, kind="topk", name="made_up", d_model=D, num_latents=LATENTS, k=4,
        inference=variant.inference, hook=encoded,
        normalization={"kind": "unit", "d_model": D, "scale": 1.0}, variant=variant, cache={}, training={},
        target=SAETarget(hook="mlp_out.3", d_model=out, normalization=normalization, skip=skip),
    )  # fmt: skip
    shapes = {
        "W_enc": (LATENTS, D),
        "W_dec": (LATENTS, out),
        "b_enc": (LATENTS,),
        "b_dec": (out,),
        "b_in": (D,),
    }
    shapes |= {"W_skip": (out, D)} if skip else {}
    return SAE(cfg, {name: 0.3 * torch.randn(*shape, generator=random) for name, shape in shapes.items()})


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_replaces_what_the_mlp_adds_by_what_it_reads(language_model, skip: bool) -> None:
    sae = make_transcoder(language_model, skip=skip)
    read = language_model.activations(IDS, ["mlp_in.3"])["mlp_in.3"]
    expected = language_model.logits_with(IDS, "mlp_out.3", lambda _: sae(read, input="raw"))
    with sae.attach(language_model.model) as model, torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, expected, atol=1e-4)
    assert not torch.allclose(language_model.logits(IDS), expected, atol=1e-2)

    def by_hand(y: torch.Tensor) -> torch.Tensor:
        codes = sae.encode(read.flatten(0, 1), input="raw")
        return y + ((3.0 - codes[:, 5:6]) * sae.W_dec[5] / 0.5).reshape(y.shape)

    expected = language_model.logits_with(IDS, "mlp_out.3", by_hand)
    with sae.attach(language_model.model, steer={5: 3.0}) as model, torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, expected, atol=2e-3)


BLOCKS, PER_LAYER = (1, 2, 3), 8


def make_cross_layer_transcoder(language_model, variant=None, *, first: str = "mlp_in.1") -> SAE:
    """Of blocks 1 to 3 of the built-in model, eight latents each."""
    random = torch.Generator().manual_seed(0)
    D, variant = language_model.d_model("mlp_out.1"), variant or BatchTopK(k=4)
    F, O = len(BLOCKS) * PER_LAYER, len(BLOCKS) * D  # noqa: E741 - as in the code
    hooks, targets = [], []
    for layer, block in enumerate(BLOCKS):
        normalization = {"kind": "unit_scale", "d_model": D, "scale": 0.2 + 0.1 * layer}
        hooks.append(HookRows(hook=f"mlp_in.{block}", d_model=D, normalization=normalization))
        normalization = {"kind": "scale", "d_model": D, "scale": 0.5 + layer}
        targets.append(SAETarget(hook=f"mlp_out.{block}", d_model=D, normalization=normalization))
    hooks[0] = hooks[0].model_copy(update={"hook": first})
    cfg = SAEConfig(
        format_version=2, kind=variant.kind, name="made_up", d_model=O, num_latents=F, k=4,
        inference=variant.inference, hook="+".join(part.hook for part in hooks),
        normalization={"kind": "joined", "d_model": O}, variant=variant, cache={}, training={},
        hooks=tuple(hooks), targets=tuple(targets),
    )  # fmt: skip
    shapes = {"W_enc": (F, D), "W_dec": (F, O), "b_enc": (F,), "b_dec": (O,), "b_in": (O,)}
    if variant.kind == "gated":
        shapes |= {"r_mag": (F,), "b_mag": (F,)}
    tensors = {name: 0.3 * torch.randn(*shape, generator=random) for name, shape in shapes.items()}
    for layer in range(1, len(BLOCKS)):
        tensors["W_dec"][layer * PER_LAYER : (layer + 1) * PER_LAYER, : layer * D] = 0
    if variant.inference == "threshold":
        tensors["threshold"] = torch.linspace(0.05, 0.4, F)
    return SAE(cfg, tensors)


class ByHand:
    """The replacement model by forward hooks on the MLP modules, and a dense formula for each pair of layers.

    ``change`` is given a layer and its codes [n, F / L], and returns those that are decoded; ``whole`` says
    whether the prediction replaces the MLP's output, or the change of the prediction is added to it.
    """

    def __init__(self, sae: SAE, change, whole: bool) -> None:
        self.sae, self.change, self.whole, self.codes = sae, change, whole, {}

    def codes_of(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        sae, D = self.sae, x.shape[-1]
        own = slice(layer * PER_LAYER, (layer + 1) * PER_LAYER)
        centered = sae.cfg.hooks[layer].normalizer.scale * x - sae.b_in[layer * D : (layer + 1) * D]
        pre = centered @ sae.W_enc[own].T + sae.b_enc[own]
        if sae.cfg.inference == "threshold":
            return pre * (pre > sae.threshold[own])
        if sae.cfg.inference == "gated":
            size = (pre - sae.b_enc[own]) * sae.get_buffer("r_mag")[own].exp() + sae.get_buffer("b_mag")[own]
            return size.relu() * (pre > 0)
        return pre.relu()

    def output(self, layer: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        sae, D = self.sae, x.shape[-1]
        before = self.codes_of(layer, x)
        self.codes[layer] = (before, self.change(layer, before.clone()))
        columns = slice(layer * D, (layer + 1) * D)
        made = sae.b_dec[columns] if self.whole else torch.zeros(D)
        for source in range(layer + 1):
            old, new = self.codes[source]
            codes = new if self.whole else new - old
            made = made + codes @ sae.W_dec[source * PER_LAYER : (source + 1) * PER_LAYER, columns]
        made = made / sae.cfg.targets[layer].normalizer.scale
        return made if self.whole else y + made

    def logits(self, model) -> torch.Tensor:
        handles = [
            model.get_submodule(f"gpt_neox.layers.{block}.mlp").register_forward_hook(
                lambda _module, args, y, layer=layer: self.output(layer, args[0], y)
            )
            for layer, block in enumerate(BLOCKS)
        ]
        try:
            with torch.no_grad():
                return model(input_ids=IDS).logits
        finally:
            for handle in handles:
                handle.remove()


@pytest.mark.parametrize("variant", [BatchTopK(k=4), ReLU(), Gated()], ids=lambda variant: variant.kind)
def test_a_cross_layer_transcoder_replaces_the_mlps_of_all_layers(language_model, variant) -> None:
    """Each layer's latents read the model in which the MLPs before are replaced already."""
    sae, model = make_cross_layer_transcoder(language_model, variant), language_model.model
    expected = ByHand(sae, lambda _, codes: codes, whole=True).logits(model)
    with sae.attach(model), torch.no_grad():
        first, second = model(input_ids=IDS).logits, model(input_ids=IDS[:1]).logits
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second, expected[:1], rtol=1e-4, atol=1e-4)
    clean = language_model.logits(IDS)
    assert not torch.allclose(clean, expected, atol=1e-2)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, clean)


@pytest.mark.parametrize("splice", [False, True])
def test_a_steered_latent_of_a_layer_writes_to_it_and_to_later_ones(language_model, splice: bool) -> None:
    sae, model = make_cross_layer_transcoder(language_model), language_model.model

    def change(layer: int, codes: torch.Tensor) -> torch.Tensor:
        if layer == 1:  # latents 8 to 15 of the SAE
            codes[..., 3] = 4.0
            codes[..., 5] -= 1.5
        return codes

    expected = ByHand(sae, change, whole=splice).logits(model)
    with sae.attach(model, steer={11: 4.0}, add={13: -1.5}, splice=splice), torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(language_model.logits(IDS), expected, atol=1e-2)


def test_a_forward_after_one_that_failed_begins_anew(language_model) -> None:
    sae, model = make_cross_layer_transcoder(language_model), language_model.model
    with sae.attach(model), torch.no_grad():
        expected = model(input_ids=IDS).logits
        handle = model.get_submodule("gpt_neox.layers.2").register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=IDS[:1])
        handle.remove()
        assert torch.equal(model(input_ids=IDS).logits, expected)


def test_what_cannot_be_attached_of_several_layers(language_model) -> None:
    model = language_model.model
    among_all = make_cross_layer_transcoder(language_model, TopK(k=4))
    with pytest.raises(UsageError, match="chooses among the latents of all layers"), among_all.attach(model):
        pass
    sae = make_cross_layer_transcoder(language_model)
    with pytest.raises(UsageError, match="leave out hook"), sae.attach(model, hook="mlp_out.1"):
        pass
    late = make_cross_layer_transcoder(language_model, first="resid_post.3")
    with late.attach(model), pytest.raises(UsageError, match=r"resid_post.3 comes after mlp_out.1"):
        model(input_ids=IDS)


def test_what_cannot_be_attached_of_several_hooks(language_model, width: int) -> None:
    model = language_model.model
    transcoder = make_transcoder(language_model)
    with pytest.raises(UsageError, match="leave out hook"), transcoder.attach(model, hook="mlp_out.2"):
        pass
    late = make_transcoder(language_model, encoded="resid_post.3")
    with late.attach(model), pytest.raises(UsageError, match=r"resid_post.3 comes after mlp_out.3"):
        model(input_ids=IDS)
    part = {"d_model": width, "normalization": {"kind": "unit", "d_model": width, "scale": 1.0}}
    hooks = [HookRows(hook=f"resid_post.{i}", **part) for i in (2, 3)]
    single = make_sae(2 * width)
    cfg = single.cfg.model_copy(
        update={
            "hook": "resid_post.2+resid_post.3",
            "hooks": tuple(hooks),
            "normalization": {"kind": "joined"},
        }
    )
    crosscoder = SAE(cfg, dict(single.named_buffers()))
    with pytest.raises(UsageError, match="is a crosscoder"), crosscoder.attach(model):
        pass


def test_a_hook_of_any_length_makes_a_message_that_can_be_read(language_model, width: int) -> None:
    with (
        pytest.raises(UsageError) as caught,
        make_sae(width).attach(language_model.model, hook="x" * 1_000_000),
    ):
        pass
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("latent", ["3", 3.5, True])
def test_latents_that_are_no_whole_numbers_are_refused(language_model, width: int, latent) -> None:
    with (
        pytest.raises(UsageError, match=f"latent {latent!r} to 0.5: expected a latent from 0 to 63"),
        make_sae(width).attach(language_model.model, add={latent: 0.5}),
    ):
        pass


def test_what_is_no_hugging_face_model_is_named(language_model, width: int) -> None:
    for other, message in (
        (language_model, "got LanguageModel: hand in its .model"),
        (torch.nn.Linear(2, 2), "got Linear$"),
    ):
        with pytest.raises(UsageError, match=message), make_sae(width).attach(other):
            pass
