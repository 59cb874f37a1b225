"""``sae.attach(model)`` on the built-in model: splicing, steering, and that nothing stays behind."""

import numpy as np
import pytest
import torch

from saecache.common.errors import UsageError
from saecache.harvest import LanguageModel
from saecache.train import SAE
from saecache.train.sae_config import HookRows, SAEConfig, SAETarget
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
