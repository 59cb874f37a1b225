"""Every kind of normalization, and new ones: cache, Normalizer, SAE and exports agree."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saecache.common.errors import UsageError
from saecache.evaluate.export.comparison import make_random_rows
from saecache.evaluate.export.formats.saelens import SAELens
from saecache.evaluate.export.space import choose_space
from saecache.store import ActivationCache, CacheWriter, StorageConfig, open_cache
from saecache.store.normalization import KINDS, Kind
from saecache.train.sae import SAE
from saecache.train.sae_config import SAEConfig
from saecache.train.variants.topk import TopK

HOOK, WIDTH, LATENTS, ROWS = "h", 24, 40, 500
NEW = {  # as a newcomer would add them: nothing else knows their names
    "l2_norm": Kind("raw", row_factor=lambda x: 1 / x.norm(dim=-1, keepdim=True).clamp_min(1e-20)),
    "twice_scale": Kind("raw", mean_square=lambda d_model: 4.0 * d_model),
    "half_unit": Kind("unit", width_factor=lambda d_model: 0.5),
    "max_norm": Kind("unit", row_factor=lambda u: 1 / u.abs().amax(dim=-1, keepdim=True).clamp_min(1e-20)),
}


@pytest.fixture(params=[*KINDS, *NEW])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, new in NEW.items():
        monkeypatch.setitem(KINDS, name, new)
    return str(request.param)


@pytest.fixture(scope="module", params=["unit", "none"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    """Rows of quite different means and norms, and one that is constant."""
    path = tmp_path_factory.mktemp("normalizations") / "cache"
    storage = StorageConfig(dtype="float32", normalization=request.param, chunk_rows=64)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, WIDTH)) * rng.lognormal(size=(ROWS, 1)) + rng.normal(size=(ROWS, 1))
    x[7] = 3
    with CacheWriter(path, hooks={HOOK: WIDTH}, identity={}, storage=storage) as writer:
        writer.write_rows({HOOK: x.astype(np.float32)})
    return open_cache(path)


def make_sae(cache: ActivationCache, kind: str) -> SAE:
    random = torch.Generator().manual_seed(0)
    weights = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=random), dim=1)
    variant = TopK(num_latents=LATENTS, k=4)
    cfg = SAEConfig(
        kind=variant.kind,
        name="sae",
        d_model=WIDTH,
        num_latents=LATENTS,
        k=4,
        inference=variant.inference,
        hook=HOOK,
        normalization=cache.normalizer(HOOK, kind).to_dict(),
        variant=variant,
        cache={},
        training={},
    )
    biases = {"b_enc": torch.zeros(LATENTS), "b_dec": 0.01 * torch.randn(WIDTH, generator=random)}
    return SAE(cfg, {"W_enc": weights, "W_dec": weights.clone(), **biases})


def rows_as(cache: ActivationCache, kind: str) -> Tensor:
    return cache.rows(HOOK, np.arange(ROWS), normalization=kind)


def close(got: Tensor, expected: Tensor) -> bool:
    return torch.allclose(got, expected, rtol=2e-4, atol=2e-5 * float(expected.abs().max()))


def test_the_cache_hands_out_what_the_normalizer_makes_of_raw_rows(cache: ActivationCache, kind: str) -> None:
    raw, normalizer = rows_as(cache, "none"), cache.normalizer(HOOK, kind)
    wanted, state = normalizer.apply(raw.clone())
    assert close(rows_as(cache, kind), wanted)
    assert torch.equal(torch.cat(list(cache.batches(HOOK, 64, normalization=kind))), rows_as(cache, kind))
    assert close(normalizer.invert(wanted, state), raw)
    assert type(normalizer).from_dict(normalizer.to_dict()) == normalizer
    if kind != "none":
        assert not close(rows_as(cache, kind), raw)


def test_the_size_of_the_rows_that_a_kind_settles(cache: ActivationCache, kind: str) -> None:
    """Penalties of probes depend on it."""
    settled = cache.normalizer(HOOK, kind).root_mean_square
    if settled is None:
        assert kind == "none" or KINDS[kind].row_factor is not None
    else:
        assert float(rows_as(cache, kind).square().sum(1).mean().sqrt()) == pytest.approx(settled, rel=0.01)


def test_raw_rows_are_left_as_they_are(cache: ActivationCache, kind: str) -> None:
    raw = rows_as(cache, "none")
    before = raw.clone()
    normalizer = cache.normalizer(HOOK, kind)
    normalizer.invert(*normalizer.apply(raw))
    assert torch.equal(raw, before)


def test_an_sae_does_the_same_with_raw_rows_as_with_those_of_the_cache(
    cache: ActivationCache, kind: str
) -> None:
    sae, raw, normalized = make_sae(cache, kind), rows_as(cache, "none"), rows_as(cache, kind)
    codes = sae.encode(raw, input="raw")
    assert isinstance(codes, Tensor)
    assert close(codes, sae.encode(normalized))  # type: ignore[arg-type]
    _, state = sae.normalizer.apply(raw)
    assert close(sae(raw, input="raw"), sae.normalizer.invert(sae(normalized), state))


def test_an_export_knows_what_its_library_is_handed_in(cache: ActivationCache, kind: str) -> None:
    """v = factor * y: of raw rows, of rows that the library normalizes first, or refused."""
    sae = make_sae(cache, kind)
    settings: dict[str, Any] = {"format_name": "saelens", "normalized_input": False}
    able, unable = {"saelens": SAELens.steps}, {"saelens": frozenset(), "other": SAELens.steps}
    if KINDS[kind].row_factor is not None and kind != "rms_norm":  # whose step SAELens has
        with pytest.raises(UsageError, match="no such step: use --normalized-input"):
            choose_space(sae, steps=able, **settings)
        given = choose_space(sae, steps=able, **settings | {"normalized_input": True})
        assert given.factor == 1 and make_random_rows(sae, given).isfinite().all()
        return
    space = choose_space(sae, steps=able, **settings)
    v = make_random_rows(sae, space).double()
    y = sae.normalizer.apply(v.float())[0]
    if space.step is not None:
        with pytest.raises(UsageError, match="use --format other, which has it"):
            choose_space(sae, steps=unable, **settings)
        given = choose_space(sae, steps=unable, **settings | {"normalized_input": True})
        assert given.factor == 1 and make_random_rows(sae, given).isfinite().all()
    if space.step == "standardize":
        v = (v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True)
    elif space.step == "rms_norm":
        assert v.norm(dim=1).std() > 0.1 * v.norm(dim=1).mean()  # rows with norms of their own
        v = v * v.shape[1] ** 0.5 / v.norm(dim=1, keepdim=True)
    assert close(v.float(), y * space.factor)


def test_a_config_may_ask_for_every_kind() -> None:
    from pydantic import TypeAdapter, ValidationError

    from saecache.store.normalization import NormalizationKind

    adapter: TypeAdapter[str] = TypeAdapter(NormalizationKind)
    assert [adapter.validate_python(kind) for kind in KINDS] == list(KINDS)
    with pytest.raises(ValidationError):
        adapter.validate_python("units")


def test_zero_rows_stay_zero(kind: str, tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c", hooks={HOOK: WIDTH}, identity={}) as writer:
        writer.write_rows({HOOK: np.zeros((8, WIDTH), np.float32)})
    zeros = open_cache(tmp_path / "c")
    assert not zeros.rows(HOOK, range(8), normalization=kind).any()


def test_the_docs_say_what_every_kind_is() -> None:
    docs = Path(__file__).parents[1] / "docs"
    for page, column in (("guide.md", "| rows that the SAE sees |"), ("export.md", "| in SAELens |")):
        _, _, after = (docs / page).read_text("utf-8").partition(column)
        rows = [line.split("|")[1] for line in after.split("\n\n")[0].splitlines()[1:] if "|" in line]
        assert set(KINDS) <= set(re.findall("`([a-z_]+)`", "".join(rows))), page


def test_a_kind_has_one_thing_that_settles_its_mean_square() -> None:
    """The two factors together gave rows of twice the length that was promised."""
    with pytest.raises(ValueError, match="no other factor"):
        Kind("raw", mean_square=float, width_factor=lambda d_model: 2.0)
