"""Transcoders and crosscoders of a small language model: their figures against plain definitions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecache.common.errors import UsageError
from saecache.evaluate.report import write_report
from saecache.evaluate.results import read_results
from saecache.evaluate.runner import run as evaluate
from saecache.evaluate.sequences import choose_sequences
from saecache.store.reading.reader import ActivationCache
from saecache.train import SAE, TrainConfig, load_sae
from saecache.train import run as train
from saecache.train.sae_hooks import split_by_hook

from .conftest import HOOK, OTHER_HOOK, SHORT_RUN, WIDTH, TinyModel
from .report.browser import CHROMIUM, Page

RULES = ["threshold", "batch"]


@pytest.fixture(scope="module")
def runs(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Transcoders with and without a skip connection from one layer to the next, and a crosscoder of both."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    skip = {"hook": OTHER_HOOK, "skip": True}
    settings: dict[str, dict[str, Any]] = {
        "transcoder": {"hook": HOOK, "target": {"hook": OTHER_HOOK}, "normalization": "none"},
        "skipping": {"hook": HOOK, "target": skip, "initialisation": {"decoder": "zeros"}},
        "crosscoder": {"hook": "all", "crosscoder": True},
    }
    for name, one in settings.items():
        config = TrainConfig.model_validate(
            {
                "variants": [{"kind": "batch_topk", "k": 6, "name": name}],
                **SHORT_RUN,
                **one,
            }
        )
        found |= train(config, cache, folder / name).saes
    return found


def predicted(sae: SAE, cache: ActivationCache, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw predictions of held-out rows, and the raw rows themselves, side by side."""
    x = torch.cat([cache.rows(h, rows, "heldout", "none") for h in sae.cfg.hook.split("+")], dim=1)
    if sae.cfg.target is None:
        return sae(x, input="raw"), x
    return sae(x, input="raw"), cache.rows(OTHER_HOOK, rows, "heldout", "none")


def fvu_of(prediction: torch.Tensor, rows: torch.Tensor) -> float:
    rows, prediction = rows.double(), prediction.double()
    return float((prediction - rows).square().sum() / (rows - rows.mean(0)).square().sum())


def test_fidelity_is_that_of_what_is_reconstructed(
    runs: dict[str, Path], cache: ActivationCache, tmp_path: Path
) -> None:
    results = evaluate(list(runs.values()), cache, out=tmp_path / "results.json", show_progress=False)
    rows = np.arange(cache.num_rows("heldout"))
    for result in results.saes:
        sae = load_sae(runs[result.name])
        prediction, wanted = predicted(sae, cache, rows)
        assert result.raw.fvu == pytest.approx(fvu_of(prediction, wanted), rel=1e-4)
        assert result.raw.fvu < 0.5
        last = result.progressive[-1]
        assert last.fvu == pytest.approx(result.normalized.fvu, rel=1e-3), "all codes are kept"
        if result.name != "crosscoder":
            assert result.hook == HOOK and result.target == OTHER_HOOK and not result.hooks
            continue
        parts = split_by_hook(sae.cfg, prediction), split_by_hook(sae.cfg, wanted)
        assert [one.hook for one in result.hooks] == [HOOK, OTHER_HOOK]
        for one in result.hooks:
            assert one.raw.fvu == pytest.approx(fvu_of(parts[0][one.hook], parts[1][one.hook]), rel=1e-4)
            assert sum(one.decoder_shares.counts) == result.codes.alive
        assert sum(one.mean_decoder_share for one in result.hooks) == pytest.approx(1)
        alive = (sae.encode(torch.cat([cache.rows(h, rows, "heldout") for h in cache.hooks], 1)) != 0).any(0)
        first, second = sae.W_dec[alive].split(WIDTH, dim=1)
        share = first.norm(dim=1) / (first.norm(dim=1) + second.norm(dim=1))
        assert result.hooks[0].mean_decoder_share == pytest.approx(float(share.mean()), rel=1e-5)
    assert read_results(tmp_path / "results.json") == results
    page = tmp_path / "page.html"
    write_report([tmp_path], page)
    text = page.read_text("utf-8")
    assert f"{HOOK} → {OTHER_HOOK}" in text and f"{HOOK}+{OTHER_HOOK}" in text


@pytest.mark.parametrize("rule", RULES)
def test_the_model_is_spliced_at_what_is_reconstructed(
    runs: dict[str, Path], cache: ActivationCache, model: TinyModel, tmp_path: Path, rule: str
) -> None:
    results = evaluate(
        list(runs.values()),
        cache,
        model=model,
        out=tmp_path / "results.json",
        show_progress=False,
        rule=rule,
        ce_tokens=300,
    )
    by_name = {result.name: result for result in results.saes}
    costs = {name: by_name[name].language_model for name in ("transcoder", "skipping")}
    costs |= {one.hook: one.language_model for one in by_name["crosscoder"].hooks}
    assert by_name["crosscoder"].language_model is None
    for cost in costs.values():
        assert cost is not None and cost.ce_sae < cost.ce_zero and 0 < cost.kl_sae < cost.kl_zero
    if rule == "batch":
        return
    sequences = choose_sequences(cache, "heldout", cache.num_rows("heldout"), 300, 0)
    for name, hook in (("transcoder", OTHER_HOOK), ("skipping", OTHER_HOOK), ("crosscoder", HOOK)):
        cost = costs[hook if name == "crosscoder" else name]
        assert cost.ce_sae == pytest.approx(
            ce_by_hand(load_sae(runs[name]), cache, model, sequences, hook), rel=1e-4
        )


def ce_by_hand(sae: SAE, cache: ActivationCache, model: TinyModel, sequences: Any, hook: str) -> float:
    """The cross-entropy when every activation that has a row is replaced by its prediction."""
    ids, places = torch.from_numpy(sequences.ids), torch.from_numpy(sequences.spliced)
    prediction, _ = predicted(sae, cache, sequences.rows[sequences.spliced])
    if sae.cfg.hooks is not None:
        prediction = split_by_hook(sae.cfg, prediction)[hook]

    def replace(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[places] = prediction
        return x

    losses = -model.logits_with(ids, hook, replace).log_softmax(-1)
    scored = torch.from_numpy(sequences.scored)
    following = torch.zeros_like(ids)
    following[:, :-1] = ids[:, 1:]
    return float(losses.gather(2, following[..., None])[..., 0][scored].double().mean())


def test_probing_and_absorption_are_refused_where_they_mean_nothing(
    runs: dict[str, Path], cache: ActivationCache, tmp_path: Path
) -> None:
    reader: Any = object()  # nothing is read
    for name, message in (("crosscoder", "writes to several hooks"), ("transcoder", "writes to ")):
        with pytest.raises(UsageError, match=message):
            evaluate(
                [runs[name]],
                cache,
                reader=reader,
                out=tmp_path / "results.json",
                absorption=True,
                show_progress=False,
            )


def test_a_cache_without_the_target_is_refused(
    runs: dict[str, Path], cache: ActivationCache, tmp_path: Path
) -> None:
    sae = load_sae(runs["transcoder"])
    assert sae.cfg.target is not None
    target = sae.cfg.target.model_copy(update={"hook": "resid_post.7"})
    SAE(sae.cfg.model_copy(update={"target": target}), dict(sae.named_buffers())).save(tmp_path / "sae")
    with pytest.raises(UsageError, match=r"was trained on hook 'resid_post.7'; .* has resid_post.0"):
        evaluate([tmp_path / "sae"], cache, out=tmp_path / "results.json", show_progress=False)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
def test_the_report_draws_layers_and_shares_of_decoder_norms(
    runs: dict[str, Path], cache: ActivationCache, tmp_path: Path
) -> None:
    evaluate(list(runs.values()), cache, out=tmp_path / "results.json", show_progress=False)
    with Page(write_report([tmp_path], tmp_path / "page.html"), tmp_path / "profile") as page:
        page.settle()
        figures = page.evaluate("""[...document.querySelectorAll("#layers figure")].map(f => ({
            title: f.querySelector("b").textContent, series: f.querySelectorAll("g.series").length,
            points: f.querySelectorAll("g.series path:not(.interval)").length,
            wrong: f.querySelector("svg").outerHTML.match(/NaN|undefined|Infinity/),
        }))""")
        assert page.console == []
    assert [(f["title"], f["series"], f["points"]) for f in figures] == [
        ("FVU by layer", 3, 4),  # the crosscoder is at both layers
        (f"Decoder norm at {HOOK}", 1, 1),
        (f"Decoder norm at {OTHER_HOOK}", 1, 1),
    ]
    assert not any(f["wrong"] for f in figures)
