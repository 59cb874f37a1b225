"""The page of the papers' claims is made from the JSON of the claims run: verdicts, tables, SVG figures."""

import json
import math
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "papers"))
import adaptive
import page
from arms import ONE_SEED, PREFIX, SECTIONS, TUNED, with_seeds
from charts import Series, draw
from claim import Claim, with_equal_l0
from claim_table import claims_with_verdicts
from claims.adaptive import ADAPTIVE
from every_kind_table import every_kind
from forms import FORMS
from growth import growth
from learning_rates import best_rates, rates_to_try
from oracles import measure_oracles, pursue
from run import measure_what_is_missing, parts
from sections import fitted_zipf, training_of
from tables import layers, peers, rates, synthetic
from verdicts import Outcome

from saecache.evaluate.synthetic import FeatureBucket, GroundTruth, SyntheticConfig
from saecache.testing.sparse_rows import small_run, write_sparse_cache
from saecache.train import load_sae, run
from saecache.train.variants import VARIANTS
from saecache.train.variants.base.variant import Plan

ZIPF = {"alpha": 0.9, "beta": 3.0}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_every_arm_can_be_trained(form: str, section: str) -> None:
    chosen = FORMS[form]
    if not SECTIONS[section](chosen, ZIPF):
        assert section == "probabilistic_ablations_next_k" and len(chosen.ks) == 1
        return
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
        assert set(rates) == set(VARIANTS), "all kinds are compared: add an arm in benchmarks/papers/arms.py"
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
    assert lines[at].endswith("(abstract, table 2):")
    assert lines[at + 1].startswith("  - k = 8: **holds here** (fvu at L0 = k 0.4")
    worse = lines.index(
        "- Feature Choice, trained after Mutual Choice, reconstructs better than TopK (section 6, table 2):"
    )
    assert "**the opposite holds here**" in lines[worse + 1]
    dead = lines.index("- Feature Choice leaves fewer latents dead than TopK with AuxK (section 6, table 1):")
    assert "**cannot be told here**" in lines[dead + 1]
    row = next(line for line in lines if line.startswith("| Feature Choice leaves fewer latents dead than T"))
    assert "| section 6, table 1 | cannot be told |" in row and "A latent is dead" in row, "and why"
    row = next(line for line in lines if line.startswith("| Feature Choice, trained after Mutual Choice, r"))
    assert "| **opposite** |" in row
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
    rated = {"lr0.001_topk_k8": arm(0.1, 8), "lr0.004_topk_k8": arm(0.0, 8)}
    for one in rated.values():
        one["figures"]["fvu"] = one["figures"]["fvu"][:1]
    assert best_rates({"arms": rated, "failed": {}}) == {"topk": 4e-3}
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
    assert best_rates({"arms": rated, "failed": {}}) == {"relu": 1e-3}


@pytest.mark.parametrize(("l0", "power"), [(7.0, -0.4), (9.0, -0.2)])
def test_losses_are_brought_to_k_along_the_neighbour_on_their_side(l0: float, power: float) -> None:
    """The curve of FVU is flatter above k = 8 than below it."""
    found = {
        f"topk_k{k}": {"l0": [float(k)], "fvu": [fvu]} for k, fvu in ((4, 2**0.4), (8, 1.0), (16, 2**-0.2))
    }
    found["tuned_mutual_k8"] = {"l0": [l0], "fvu": [(l0 / 8) ** power]}
    assert with_equal_l0(found)["tuned_mutual_k8"]["fvu at L0 = k"] == pytest.approx([1.0])


def test_a_claim_that_goes_on_from_one_without_arms_is_spelled_out() -> None:
    claims = [
        Claim(where="", text=text, figure="fvu", lower=lower, higher="topk")
        for text, lower in (
            ("A beats T", "a"),
            ("... and B does", "b"),
            ("C beats T", "c"),
            ("... and D does", "d"),
        )
    ]
    found = {f"{name}_k8": {"fvu": [1.0, 1.0]} for name in ("b", "c", "d", "topk")}
    tested = claims_with_verdicts([(claim, list(claim.verdicts(found))) for claim in claims])
    assert [claim.text for claim, _ in tested] == ["A beats T ... and B does", "C beats T", "... and D does"]


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


def tried(fvu: dict[str, float], **more: Any) -> dict[str, Any]:
    """A section ``rates`` with these FVUs by name, all of TopK."""
    arms = {
        name: {"variant": {"kind": "topk"}, "figures": {"l0": [8.0], "fvu": [value]}}
        for name, value in fvu.items()
    }
    return {"arms": arms, "failed": {}, **more}


def test_the_grid_of_rates_grows_where_its_best_is_at_an_end() -> None:
    at_the_top = {"lr0.001_topk_k8": 0.5, "lr0.002_topk_k8": 0.4}
    assert rates_to_try(tried(at_the_top)) == {"topk": 0.004}
    assert rates_to_try(tried({**at_the_top, "lr0.004_topk_k8": 0.45})) == {}
    assert rates_to_try(tried({"lr0.001_topk_k8": 0.4, "lr0.002_topk_k8": 0.5})) == {"topk": 0.0005}
    diverged = tried(at_the_top, failed={"lr0.004_topk_k8_seed0": "FVU is not finite"})
    assert rates_to_try(diverged) == {} and best_rates(diverged) == {"topk": 0.002}


def test_rates_are_measured_until_the_best_is_between_others(tmp_path: Path) -> None:
    """Only kinds whose best rate is at an end are trained again, in a folder of their own."""
    form, calls = FORMS["medium"], []
    best = {"topk": 16e-3, "gated": 4e-3}  # all other kinds as Gated

    def measure(form: Any, runs: Path, wanted: Any = None) -> dict[str, Any]:
        arms = SECTIONS["rates"](form, ZIPF)
        wanted = arms if wanted is None else wanted
        calls.append((runs.name, sorted(wanted)))
        found = {}
        for name in wanted:
            kind, rate = arms[name]["kind"], arms[name]["optimizer"]["learning_rate"]
            fvu = 0.3 + abs(math.log(rate / best.get(kind, 4e-3)))
            found[name] = {"variant": arms[name], "figures": {"l0": [16.0], "fvu": [fvu]}}
            if "_c" in name:  # the two coefficients are on either side of k
                found[name]["figures"]["l0"] = [12.0 if name.endswith(("0.08_k16", "0.13_k16")) else 20.0]
        return {"arms": found, "failed": {}}

    *_, last = measure_what_is_missing("rates", form, {}, measure, None, tmp_path / "rates")
    assert [name for name, _ in calls] == ["rates", "rates-0.016", "rates-0.032"]
    assert calls[1][1] == ["lr0.016_topk_k16"] and calls[2][1] == ["lr0.032_topk_k16"]
    assert best_rates(last)["topk"] == 16e-3 and set(best_rates(last).values()) == {16e-3, 4e-3}
    assert not list(measure_what_is_missing("rates", form, {}, measure, last, tmp_path / "rates"))


def test_only_arms_that_are_new_or_have_another_rate_are_measured_again(tmp_path: Path) -> None:
    form, runs = FORMS["medium"], tmp_path / "every_kind"
    settings = SECTIONS["every_kind"](form, ZIPF)
    known = {
        "arms": {name: {"variant": variant, "figures": {}} for name, variant in settings.items()},
        "rates": {"topk": 1e-3, "batch_topk": 1e-3},
        "failed": {"tuned_topk_k16_seed1": "FVU is not finite"},
    }
    known["arms"]["tuned_of_before_k16"] = known["arms"].pop("tuned_matryoshka_k16")
    calls = []

    def measure(form: Any, runs: Path, wanted: Any = None) -> dict[str, Any]:
        calls.append((runs, list(wanted)))
        return {"arms": {name: arm(-0.1, 16) for name in wanted}, "rates": rates, "failed": {}}

    rates = {"topk": 2e-3, "batch_topk": 1e-3}
    (found,) = measure_what_is_missing("every_kind", form, rates, measure, known, runs)
    assert calls[0][1] == ["tuned_topk_k16", "tuned_matryoshka_k16"] and calls[0][0] != runs
    assert list(found["arms"]) == list(settings), "in their order, without those of before"
    assert found["arms"]["tuned_topk_k16"] == arm(-0.1, 16), "measured again"
    assert found["arms"]["tuned_mutual_k16"] == known["arms"]["tuned_mutual_k16"], "its rate is the same"
    assert found["rates"] == rates and found["failed"] == {}
    assert not list(measure_what_is_missing("every_kind", form, rates, measure, found, runs))


def test_what_is_trained_apart() -> None:
    """One k, one layer, one number of steps at a time, with the settings that the name says."""
    found = {name: (section, part) for name, section, part in parts(FORMS["medium"])}
    assert found["choice_k16"][1].ks == (16,)
    assert found["layer9"][0] == "layers" and found["layer9"][1].hook == "resid_post.9"
    assert found["longer_x4"][1].steps == 4 * FORMS["medium"].steps
    assert not [name for name in parts(FORMS["short"]) if name[0].startswith("layer")]


def test_layers_are_compared_along_their_own_slope() -> None:
    found = {f"topk_k{k}": arm(0.0, k)["figures"] for k in (8, 16)}
    for k in (8, 16):
        found[f"layer9_topk_k{k}"] = {"l0": [float(k)] * 3, "fvu": [0.5 * (k / 8) ** -1.0] * 3}
    found["layer9_mutual_k16"] = {"l0": [20.0] * 3, "fvu": [0.2] * 3}
    assert with_equal_l0(found)["layer9_mutual_k16"]["fvu at L0 = k"] == pytest.approx([0.25] * 3)


def test_the_table_of_layers_has_the_claims_that_all_layers_tested() -> None:
    lower, higher = (
        {"dead": values, "fvu": values, "l0": [16.0] * 3} for values in ([1.0, 1.1, 0.9], [3.0, 3.1, 2.9])
    )
    found = {"mutual_k16": lower, "topk_k16": higher, "batch_topk_k16": higher}
    found |= {"layer9_mutual_k16": higher, "layer9_topk_k16": lower}
    claims = [
        Claim(where="", text=f"fewer than {other}", figure="dead", lower="mutual", higher=other)
        for other in ("topk", "batch_topk")
    ]
    *lines, last = layers(found, claims, "resid_post.14")
    rows = [line for line in lines if line.startswith("|")]
    assert last == (
        "\n0 of 1 claims come out alike at all of these layers; those that are saturated do not count."
    )
    assert rows[0] == "| claim | layer 9 | layer 14 |" and len(rows) == 3, "BatchTopK is at one layer only"
    assert rows[2] == (
        "| fewer than topk (k = 16; dead of mutual, topk) "
        "| the opposite holds here (3.00 ± 0.10, 1.00 ± 0.10) | holds here (1.00 ± 0.10, 3.00 ± 0.10) |"
    )


def test_the_gap_by_steps_is_in_the_table_and_in_words() -> None:
    def section(steps: int, topk: float, noisy: float) -> dict[str, Any]:
        arms = {"topk_without_auxk": topk, "probabilistic": noisy}
        return {
            "arms": {
                f"steps{steps}_{name}_k8": {"figures": {"mse": [mse], "dead": [3.0]}}
                for name, mse in arms.items()
            }
        }

    sections = {"longer_x4": section(400, 0.5, 0.525), "longer_x2": section(200, 0.6, 0.7)}
    found = {
        f"{kind}_k8": {"mse": [mse, 9.0], "dead": [3.0, 9.0]}
        for kind, mse in (("topk_without_auxk", 1.0), ("probabilistic", 1.2))
    }
    lines = list(growth(sections, found, replace(FORMS["medium"], steps=100)))
    rows = [line for line in lines if line.startswith("|")]
    assert rows[2].startswith("| 100 | 1.00 | 1.20 | +20.0% |"), "in the order of the steps"
    assert rows[4].startswith("| 400 | 0.5000 | 0.5250 | +5.0% |")
    text = "\n".join(lines)
    assert "the gap of `probabilistic_k8` goes from +20.0% to +5.0%" in text
    assert "MSE fell: `topk_without_auxk_k8` by 16.7%, `probabilistic_k8` by 25.0%" in text


def test_packages_are_compared_at_one_rate_and_at_their_own() -> None:
    def run(size: str, fvu: float, rate: float) -> dict[str, Any]:
        figures = [("saecache", fvu), ("learning rate of saecache", rate)]
        return {
            "size": size, "command": "python", "figures": [
                {"group": "topk", "what": what, "median": v, "low": v, "high": v, "rounds": 3}
                for what, v in figures
            ],
        }  # fmt: skip

    runs = [run("learning rate its own", 0.3, 7.5e-4), run("learning rate 0.004", 0.2, 4e-3)]
    rows = [line for line in peers(runs) if line.startswith("|")]
    assert rows == [
        "| kind | whose | own rate | same rate |",
        "|---|---|---|---|",
        "| topk | saecache | 0.3000 (0.3000 to 0.3000), rate 0.00075 "
        "| 0.2000 (0.2000 to 0.2000), rate 0.004 |",
    ]
    assert list(peers([])) == []


def test_what_was_measured_afterwards_is_in_the_table_of_every_kind() -> None:
    names = [f"{PREFIX}{name}_k8" for name in ("topk", "relu_c0.1", "relu_c0.2")]
    arms = {name: arm(0.0, 8) for name in names}
    for name, l0 in zip(names[1:], (12.0, 6.0), strict=True):
        arms[name]["figures"]["l0"] = [l0] * 3
        arms[name]["variant"] = {"kind": "relu"}
    probing = {
        "packages": ["a", "b"],
        "train_texts": 40,
        "test_texts": 10,
        "model": dict.fromkeys(("probe_1", "probe_5", "probe_all"), 1.0),
    }
    probing["figures"] = {name: {"probe_5": [0.7, 0.8, 0.9]} for name in names}
    speed = {
        "steps": [1, 2], "rounds": 2, "topk_seconds": [1.0, 1.0], "load_before": 2.5,
        "speed": {names[0]: [1.0, 1.0], names[1]: [0.4, 0.5], names[2]: [0.6, 0.5]},
    }  # fmt: skip
    absorption = {
        "refused": None,
        "words": 500,
        "test_words": 100,
        "letters": {"a": {"probe_f1": 0.95, "words": 9}, "b": {"probe_f1": 0.7, "words": 8}},
        "figures": {name: {"absorption_fraction": [0.2, 0.3, 0.4]} for name in names},
    }
    sections = {
        TUNED[0]: {"arms": {names[0]: arms.pop(names[0])}, "rates": {"topk": 1e-3, "relu": 9e-3}},
        TUNED[1]: {"arms": arms, "rates": {"topk": 9e-3, "relu": 2e-3}},
        "probing": {"probing": probing},
        "absorption": {"absorption": absorption},
        "speed": {"speed": speed},
    }
    lines = list(every_kind(page.figures_of(sections), sections))
    head, _, *rows = [line for line in lines if line.startswith("|")]
    columns = head.strip("| ").split(" | ")
    cells = {
        row.split(" | ")[0].strip("| "): dict(zip(columns, row.strip("| ").split(" | "), strict=True))
        for row in rows
    }
    assert [cells[kind]["learning rate"] for kind in ("topk", "relu")] == ["0.001", "0.002"]
    assert cells["relu"]["probe of 5"] == "0.8000 ± 0.1000" and "probe of 1" not in columns
    assert cells["relu"]["rows/s"] == "0.5000 ± 0.0000" and cells["topk"]["rows/s"] == "1.00 ± 0.00"
    assert any("of the packages a, b of Python's standard library" in line for line in lines)
    assert cells["relu"]["absorption"] == "0.3000 ± 0.1000" and "fully absorbed" not in columns
    assert any(
        "2 letters with an F1 of 0.70 or more, and see the letter of 17 of the test" in line for line in lines
    )
    absorption |= {"refused": "the model does not know letters", "figures": {}}
    lines = list(every_kind(page.figures_of(sections), sections))
    assert "\nAbsorption of first letters could not be measured: the model does not know letters" in lines
    assert not any("| absorption |" in line for line in lines)


def test_the_best_rate_is_bold_and_a_diverged_one_is_named() -> None:
    section = tried(
        {"lr0.001_topk_k8": 0.5, "lr0.002_topk_k8": 0.4}, failed={"lr0.004_topk_k8_seed0": "not finite"}
    )
    section["settings"] = {"steps": 10}
    section["arms"]["lr0.002_jumprelu_k8"] = {
        "variant": {"kind": "jumprelu"},
        "figures": {"l0": [5.25], "fvu": [0.3]},
    }
    assert [line for line in rates(section) if line.startswith("|")] == [
        "| kind | 0.001 | 0.002 | 0.004 |",
        "|---|---|---|---|",
        "| topk | 0.5000 | **0.4000** | diverged |",
        "| jumprelu | – | **0.3000 (5.2)** | – |",
    ]


def test_the_limits_of_codes_follow_from_the_true_directions() -> None:
    """Few features on nearly orthogonal directions: choosing one by one misses least, but for the noise."""
    bucket = FeatureBucket(name="all", num_features=24, frequency=0.1, scale=1.0)
    truth = GroundTruth(SyntheticConfig(num_rows=300, width=32, buckets=(bucket,), coherence=0.2, seed=1))
    found = list(measure_oracles(truth, 3, 200).values())
    true, largest, projections, pursued = found
    assert 0.005 < true < 0.02, "20 dB of noise are 1 %"
    assert true < pursued < largest < projections < 1, "three codes are fewer than some rows have features"
    codes, rows = next(iter(truth.blocks()))
    few = (codes != 0).sum(1) == 2
    chosen = pursue(rows[few], truth.directions, 2)
    right = codes[few].abs().topk(2, dim=1).indices
    same = (chosen.sort(1).values == right.sort(1).values).all(1)
    assert float(same.float().mean()) > 0.5 and len(chosen[0].unique()) == 2


def test_the_synthetic_limits_stand_without_the_kinds_and_with_them() -> None:
    alone = {"train_rows": 9000, "epochs": 6.5, "latents": 2048, "steps": 10}
    section = {
        "rows": 10_000,
        "heldout_rows": 1000,
        "oracle": {"the true codes": 0.01},
        "alone": [{**alone, "fvu of train rows": 0.1, "fvu of heldout rows": 0.3}],
    }
    lines = list(synthetic(section))
    assert "| the true codes | 0.9900 |" in lines
    assert lines[-1].startswith("\nNot measured yet")
    assert lines[-2] == "| 9,000 | 6.5 | 2,048 | 10 | 0.9000 | 0.7000 |"
    section |= {
        "settings": {"num_latents": 2048, "steps": 10, "batch_rows": 4},
        "arms": {"batch_topk": {"fvu": [0.1, 0.11]}, "sampled_uniform_l10": {"fvu": [0.3, 0.31]}},
    }
    *_, verdict = synthetic(section)
    assert verdict.startswith("- BatchTopK reconstructs better than sampled_uniform_l10")
    assert "**holds here**" in verdict


def test_the_latents_of_hard_and_of_easy_rows(tmp_path: Path) -> None:
    """A fifth of the rows needs one latent each, the others several."""
    cache = write_sparse_cache(tmp_path / "cache")
    (folder,) = run(small_run({"kind": "batch_topk", "k": 4}), cache, tmp_path / "run").saes.values()
    sae = load_sae(folder)
    easy = sae.b_dec + 3 * sae.W_dec[:40]  # along one latent each
    x = torch.cat([cache.rows("resid", range(160), "heldout", sae.normalizer.kind), easy])
    found = adaptive.measure(sae, x)
    codes = sae.encode(x)
    assert isinstance(codes, torch.Tensor)
    active = (codes != 0).sum(1).double()
    error = adaptive.errors_with(sae, x, round(float(active.mean())))
    order = error.argsort()
    assert found["easiest"][adaptive.FIGURE] == pytest.approx(float(active[order[:40]].mean()), abs=0.5)
    assert found["hardest"][adaptive.FIGURE] > found["easiest"][adaptive.FIGURE]
    total = float((x - x.mean(0)).double().square().sum())
    fvu = float((sae(x) - x).double().square().sum()) / total
    assert found["by_threshold"][adaptive.FVU] == pytest.approx(fvu, rel=1e-6)
    every = adaptive.errors_with(sae, x, sae.cfg.num_latents)
    dense = ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc).relu()
    torch.testing.assert_close(every, (sae.decode(dense) - x).double().square().sum(1), rtol=1e-4, atol=1e-8)


def test_claims_of_parts_of_the_rows_have_verdicts() -> None:
    figures = {"easiest": [5.0, 5.1, 4.9], "hardest": [12.0, 12.1, 11.9]}
    arms = {
        f"mutual_{end}_k8": {"seeds": [0, 1, 2], "figures": {adaptive.FIGURE: values}}
        for end, values in figures.items()
    }
    tested = page.tested_figures({"adaptive": {"adaptive": {"rows": 100, "arms": arms}}})
    ((claim, verdicts),) = [(c, v) for c in ADAPTIVE if (v := list(c.verdicts(tested)))]
    assert claim.higher == "mutual_hardest" and [(k, v.outcome) for k, v in verdicts] == [(8, Outcome.HOLDS)]
