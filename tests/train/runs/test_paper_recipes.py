"""The recipes of the papers can be run, and have the settings of the papers' tables."""

from collections import Counter

import pytest

from saecache.configs import list_recipes, load_config
from saecache.train import TrainConfig
from saecache.train.variants.base.variant import Plan

WIDTHS = {
    "2.8b": 2560,
    "synthetic": 256,
    "gpt2": 768,
    "qwen3": 1024,
    "ablations": 768,
    "sampled-sae": 768,
    "mutual": 768,
}
CACHE_ROWS = 25_000_000


def load(name: str) -> TrainConfig:
    return load_config(TrainConfig, f"papers/{name}", kinds=("papers",))


def width_of(name: str) -> int:
    return 160 if name.endswith("-demo") else next(w for key, w in WIDTHS.items() if key in name)


@pytest.mark.parametrize("name", [recipe.name for recipe in list_recipes("papers")])
def test_every_variant_can_be_trained(name: str) -> None:
    config = load(name)
    width = width_of(name)
    for variant in config.variants:
        expanded = (config.expansion_factor or 0) * width
        plan = Plan(
            d_model=width,
            num_latents=variant.num_latents or config.num_latents or expanded,
            batch_rows=config.batch_rows,
            num_steps=config.steps or (config.num_rows or CACHE_ROWS) // config.batch_rows,
        )
        assert variant.problems(plan) == [], variant.run_name


@pytest.mark.parametrize("score", ["l2", "squared_l2", "entropy", "uniform"])
def test_sampled_sae_has_all_pool_factors_of_its_table(score: str) -> None:
    config = load("sampled-sae")
    assert len(config.variants) == 4 * 12 + 1
    sampled, last = [v for v in config.variants[:-1] if v.score == score], config.variants[-1]
    assert [v.pool_factor for v in sampled] == [1, 3, 4, 5, 10, 20, 30, 40, 50, 60, 70, 100]
    assert {(v.kind, v.score, v.k, v.threshold.momentum, v.threshold.start_step) for v in sampled} == {
        ("sampled", score, 60, 0.999, 1000)
    }
    assert (last.kind, last.k, config.num_latents, config.steps) == ("batch_topk", 60, 65536, 50000)


@pytest.mark.parametrize(
    ("model", "counts", "ks"),
    [
        ("gpt2", {"topk": 5, "probabilistic_topk": 5, "relu": 6, "gated": 4}, [4, 8, 16, 24, 32]),
        ("qwen3", {"topk": 4, "probabilistic_topk": 4, "relu": 3, "gated": 4}, [8, 16, 32, 64]),
    ],
)
def test_probabilistic_topk_has_the_grid_of_its_table(
    model: str, counts: dict[str, int], ks: list[int]
) -> None:
    config = load(f"probabilistic-topk-{model}")
    assert Counter(variant.kind for variant in config.variants) == counts
    for kind in ("topk", "probabilistic_topk"):
        assert [variant.k for variant in config.variants if variant.kind == kind] == ks
    for variant in config.variants:
        if variant.kind == "probabilistic_topk":
            assert (variant.beta_start, variant.beta_end, variant.magnitude_weight) == (5.0, 1e-4, 1e-4)


def test_ablations_are_three_and_the_temperatures_four() -> None:
    config = load("probabilistic-topk-ablations")
    eights = [v for v in config.variants if v.kind == "probabilistic_topk" and v.k == 8]
    assert sorted(v.beta_start for v in eights) == [0.5, 1.0, 5.0, 5.0, 5.0, 5.0, 10.0]
    changed = [(v.magnitude_weight == 0, not v.layer_norm, v.gate == "sigmoid") for v in eights]
    assert {flags for flags in changed if any(flags)} == {
        (True, False, False),
        (False, True, False),
        (False, False, True),
    }


@pytest.mark.parametrize("name", ["mutual-and-feature-choice", "mutual-and-feature-choice-demo"])
def test_uniform_and_zipf_both_follow_mutual_choice(name: str) -> None:
    """Section 7.1 compares them so, with ranks by the prevalence at the end of Mutual Choice."""
    after = [v for v in load(name).variants if v.kind == "feature_choice" and v.mutual_choice is not None]
    for uniform in (v for v in after if v.zipf is None):
        same = {"mutual_choice": uniform.mutual_choice, "k": uniform.k, "num_latents": uniform.num_latents}
        assert any(v.zipf is not None and v == v.model_copy(update=same) for v in after)
    assert any(v.zipf is None for v in after)


def test_the_front_of_mutual_choice_has_one_grid_for_every_kind() -> None:
    config = load("mutual-and-feature-choice-k")
    names = Counter(v.default_name.rpartition("_k")[0] for v in config.variants)
    assert names == dict.fromkeys(
        ("topk", "mutual_choice", "feature_choice_zipf_after_mutual", "feature_choice_after_mutual"), 5
    )


def test_the_largest_runs_have_both_nfm_losses() -> None:
    config = load("mutual-and-feature-choice-pythia-2.8b")
    assert config.num_latents == 2**20 and config.expect.model == "EleutherAI/pythia-2.8b-deduped"
    _, mutual, feature = config.variants
    for terms in (mutual, feature.mutual_choice):
        assert terms.nfm is not None and terms.nfm_inf is not None


def test_both_readings_of_the_warmup_of_probabilistic_topk() -> None:
    samples, steps = load("probabilistic-topk-gpt2"), load("probabilistic-topk-gpt2-warmup")
    assert samples.num_rows == steps.num_rows and samples.batch_rows == steps.batch_rows
    run = steps.num_rows // steps.batch_rows
    gates = {v.warmup for v in steps.variants if v.kind == "probabilistic_topk"}
    assert gates == {steps.schedule.warmup} == {20_000}
    assert 0.53 < 20_000 / run < 0.54
    assert {v.warmup for v in samples.variants if v.kind == "probabilistic_topk"} == {0.04}
