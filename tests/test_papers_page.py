"""The page of the papers' claims is made from the JSON of the claims run: verdicts, tables, SVG figures."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "papers"))
import page
from arms import FORMS, ONE_SEED, PREFIX, SECTIONS, TUNED, with_seeds
from charts import Series, draw
from claim import Claim, with_equal_l0
from sections import best_rates, fitted_zipf, training_of
from tables import every_kind

from saecache.train.variants import VARIANTS
from saecache.train.variants.base.variant import Plan

ZIPF = {"alpha": 0.9, "beta": 3.0}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_every_arm_can_be_trained(form: str, section: str) -> None:
    chosen = FORMS[form]
    config, arms = training_of(section, chosen, {"topk": 1e-3, "batch_topk": 3e-3}, ZIPF)
    plan = Plan(
        d_model=160,
        num_latents=chosen.num_latents,
        batch_rows=chosen.batch_rows,
        num_steps=config.steps or 0,
    )
    for variant in config.variants:
        assert variant.problems(plan) == [], variant.run_name
        auxk = getattr(variant, "auxk", None)
        if auxk is not None and section != "auxiliary_k":
            assert auxk.k == chosen.aux_k(variant.k), "all arms have the same AuxK"
    rates = {v.kind: v.optimizer.learning_rate for v in config.variants}
    if section in TUNED:
        assert rates.pop("topk", 1e-3) == 1e-3
        assert set(rates.values()) == {3e-3}, "kinds that were not tried take BatchTopK's"
    if section == "rates":
        assert set(rates) == set(VARIANTS), "all kinds"
        found = {name.rpartition("_k")[0].partition("_")[2] for name in arms}
        tuned = [name for one in TUNED for name in SECTIONS[one](chosen, ZIPF)]
        assert found == {name.rpartition("_k")[0].removeprefix(PREFIX) for name in tuned}
    assert {variant.run_name.rpartition("_seed")[0] for variant in config.variants} == set(arms)


def test_an_arm_that_was_not_tried_takes_the_rate_of_batch_topk() -> None:
    arms = {"a": {"kind": "sampled"}, "b": {"kind": "topk", "optimizer": {"learning_rate": 1.0}}}
    sampled, topk = with_seeds(arms, [0, 1], {"topk": 2e-3, "batch_topk": 3e-3})
    assert sampled["optimizer"] == {"learning_rate": 3e-3} and sampled["name"] == "a_seed{seed}"
    assert topk["optimizer"] == {"learning_rate": 1.0}


def arm(shift: float, k: int, **more: Any) -> dict[str, Any]:
    seeds = [0.0, 0.001, -0.001]
    figures = {
        "fvu": [0.5 * (k / 8) ** -0.4 + shift + s for s in seeds],
        "mse": [0.01 * (k / 8) ** -0.4 + shift / 50 + s / 50 for s in seeds],
        "l0": [k * 0.99, k * 1.0, k * 1.01],
        "ce_recovered": [0.8 - shift + s for s in seeds],
        "dead": [10.0, 11.0, 9.0],
        "zipf_alpha": [1.0, 1.1, 0.9],
        "zipf_beta": [3.0, 2.0, 4.0],
        "zipf_r2_log": [0.98] * 3,
        "zipf_r2": [0.9] * 3,
        **more,
    }
    return {
        "variant": {"kind": "topk", "optimizer": {"learning_rate": 1e-3}},
        "seeds": [0, 1, 2],
        "figures": figures,
        "curves": {
            "alive": {"10": [90, 91, 92], "20": [80, 81, 82]},
            "density": {"rank": [1, 10, 100], "density": [0.5, 0.1, 0.01]},
            "features_per_token": {"edges": [0, 4, 8, 16], "counts": [1, 5, 2]},
            "progressive": [[1, 1.0, 0.9], [4, 4.0, 0.6]],
        },
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    config, _ = training_of("baselines", FORMS["medium"], {}, ZIPF)
    common = {
        "settings": config.model_dump(mode="json", exclude={"variants"}),
        "zipf": ZIPF,
        "failed": {},
        "cache": {"model": "m", "tokens": 10, "train_rows": 9, "measured_rows": 1, "width": 16},
    }
    arms = {
        "baselines": {f"{n}_k{k}": arm(0.0, k) for n in ("topk", "batch_topk") for k in (8, 16)},
        "choice": {
            f"{n}_k{k}": arm(d, k) for n, d in (("mutual", -0.1), ("zipf_after_mutual", 0.1)) for k in (8, 16)
        },
    }
    (tmp_path / "medium").mkdir()
    for name, found in arms.items():
        (tmp_path / "medium" / f"{name}.json").write_text(json.dumps({**common, "arms": found}))
    return tmp_path


def test_the_page_has_verdicts_and_figures(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "docs" / "papers.md"
    out.parent.mkdir()
    monkeypatch.setattr(sys, "argv", ["page.py", "--results", str(results), "--out", str(out)])
    page.main()
    text = out.read_text("utf-8")
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("- Mutual Choice reconstructs better"))
    assert lines[at].endswith("(section 6, figure 4):")
    assert lines[at + 1].startswith("  - k = 8: **holds here** (fvu at L0 = k 0.4")
    worse = next(i for i, line in enumerate(lines) if "Feature Choice, trained after Mutual Choice" in line)
    assert "**the opposite holds here**" in lines[worse + 1] and "(section 6, figure 4)" in lines[worse]
    dead = next(i for i, line in enumerate(lines) if "leaves fewer latents dead than TopK with AuxK" in line)
    assert "**cannot be told here**" in lines[dead + 1]
    assert "Probabilistic TopK has a lower MSE" not in text, "claims without arms are not on the page"
    assert "| mutual_k8 | 0.4000 ± 0.0010 |" in text
    assert not any(line.startswith("![") and not line.endswith(".svg)") for line in lines), "one line each"
    pictures = sorted((tmp_path / "docs" / "papers").glob("*.svg"))
    assert {"medium-pareto-choice.svg", "medium-density.svg"} <= {path.name for path in pictures}
    for path in pictures:
        ElementTree.fromstring(path.read_text("utf-8"))
        assert f"(papers/{path.name})" in text


@pytest.mark.parametrize("form", FORMS)
def test_what_is_compared_was_measured_on_the_same_rows(form: str) -> None:
    """Kinds without a threshold were once measured on the rows that calibrated the others, too."""
    rows = {
        name: section["cache"]["measured_rows"]
        for name, section in page.read_form(page.ROOT / "benchmarks" / "results" / "papers" / form).items()
        if "cache" in section and name not in ONE_SEED
    }
    assert len(set(rows.values())) <= 1, rows


def test_what_later_sections_take_from_earlier_ones() -> None:
    rated = {"x": arm(0.1, 8), "y": arm(0.0, 8)}
    rated["y"]["variant"]["optimizer"] = {"learning_rate": 4e-3}
    for one in rated.values():
        one["figures"]["fvu"] = one["figures"]["fvu"][:1]
    assert best_rates({"arms": rated}) == {"topk": 4e-3}
    assert fitted_zipf({"arms": {"topk_k8": {}, "batch_topk_k8": arm(0.0, 8)}}) == {"alpha": 1.0, "beta": 3.0}


def test_a_rate_is_chosen_at_equal_l0() -> None:
    """At rate 4e-3 both coefficients have more latents active and a lower FVU, but a higher one at L0 = 8."""
    rated = {}
    for rate, shift, l0 in ((1e-3, 0.0, (4.0, 16.0)), (4e-3, 0.05, (32.0, 64.0))):
        for coefficient, active in zip((0.2, 0.1), l0, strict=True):
            one = arm(0.0, 8)
            one["variant"] = {"kind": "relu", "optimizer": {"learning_rate": rate}}
            one["figures"] = {"l0": [active], "fvu": [(0.5 + shift) * (active / 8) ** -0.4]}
            rated[f"lr{rate:g}_relu_c{coefficient:g}_k8"] = one
    assert best_rates({"arms": rated}) == {"relu": 1e-3}


def test_a_claim_may_have_a_value_of_the_paper() -> None:
    found = {"topk_k8": {"r2": [0.99, 0.992, 0.991]}, "topk_k16": {"r2": [0.9, 0.91, 0.92]}}
    claim = Claim(where="", text="", figure="r2", lower=0.982, higher="topk")
    assert [(k, str(verdict)) for k, verdict in claim.verdicts(found)] == [
        (8, "**holds here** (r2 0.9820 ± 0.0000 of `the paper's 0.982`, 0.9910 ± 0.0010 of `topk_k8`; "
            "signs by seed +++)"),
        (16, "**the opposite holds here** (r2 0.9820 ± 0.0000 of `the paper's 0.982`, 0.9100 ± 0.0100 of "
             "`topk_k16`; signs by seed −−−)"),
    ]  # fmt: skip


def test_kinds_without_k_are_compared_between_their_coefficients() -> None:
    found = {f"topk_k{k}": arm(0.0, k)["figures"] for k in (8, 16)}
    for coefficient, active in ((0.1, 12.0), (0.2, 3.0)):
        found[f"relu_c{coefficient:g}_k8"] = {"l0": [active] * 3, "fvu": [0.5 * (active / 8) ** -0.7] * 3}
    assert with_equal_l0(found)["relu_k8"]["fvu at L0 = k"] == pytest.approx([0.5] * 3)
    found["relu_c0.2_k8"] = {"l0": [8.5] * 3, "fvu": [0.45] * 3}
    assert with_equal_l0(found)["relu_k8"] == {"measured l0": [12.0, 8.5]}, (
        "a line is not drawn beyond its ends"
    )


def test_kinds_whose_fvu_at_this_l0_is_not_known_stand_last() -> None:
    arms = {f"{PREFIX}{name}_k8": arm(0.0, 8) for name in ("topk", "mutual")}
    sections = {TUNED[0]: {"arms": arms, "rates": {"topk": 1e-3}}}
    found = {name: dict(one["figures"]) for name, one in arms.items()}
    found[f"{PREFIX}mutual_k8"]["fvu at L0 = k"] = [0.4] * 3
    rows = [line for line in every_kind(found, sections) if line.startswith(("| mutual", "| topk"))]
    assert rows[0].startswith("| mutual | 0.001 | 0.4000") and rows[1].startswith("| topk | 0.001 | – |")


def test_a_chart_shows_intervals_and_leaves_out_what_a_logarithm_cannot_show() -> None:
    line = Series(name="a & b", x=[1, 10, 100], y=[0.0, 0.1, 1.0], low=[0.0, 0.05, 0.5], high=[0.1, 0.2, 2.0])
    text = draw([line], title="t", x_label="x", y_label="y", log_x=True, log_y=True)
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}circle")) == 2
    assert "a & b" in [node.text for node in root.iter(f"{space}text")]
