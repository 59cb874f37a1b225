"""CE and KL: identity costs nothing, the ablation recovers nothing, all else against a plain computation."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from saecache.common.errors import UsageError
from saecache.evaluate.group_losses import jackknife, recovered
from saecache.evaluate.language_model import Spliced, measure_language_model
from saecache.evaluate.sequences import choose_sequences
from saecache.train.variants.topk import TopK

from .conftest import CONTEXT, HOOK, OTHER_HOOK, VOCABULARY, TinyModel, make_sae


@pytest.fixture(scope="module")
def sequences(cache):
    return choose_sequences(cache, "heldout", cache.num_rows("heldout"), 10**6, 0)


def measure(
    model, cache, sequences, saes: dict[str, tuple[str, Callable[[Tensor], Tensor]]], logit_bytes=2**20
):
    spliced = [Spliced(name=name, hook=hook, reconstruct=f) for name, (hook, f) in saes.items()]
    return measure_language_model(
        model, cache, spliced, sequences, split="heldout", logit_bytes=logit_bytes, show_progress=False
    )


def test_all_scored_places_are_found(cache, sequences) -> None:
    """By a plain walk over the held-out rows."""
    expected = set()
    for index in cache.token_index("heldout")[:].tolist():
        sequence, position = divmod(index, CONTEXT)
        ids, documents = cache.tokens[sequence], cache.documents[sequence]
        if (
            position + 1 < CONTEXT
            and ids[position + 1] >= 0
            and documents[position] == documents[position + 1]
        ):
            expected.add((tuple(np.maximum(ids, 0)), position))
    places = zip(*np.nonzero(sequences.scored), strict=True)
    found = {(tuple(sequences.ids[n]), position) for n, position in places}
    assert found == expected
    assert int(sequences.scored.sum()) == len(expected)
    rows = sequences.rows[sequences.spliced]
    assert (np.diff(rows) > 0).all()
    assert (sequences.ids >= 0).all()


def test_identity_recovers_all_and_the_ablations_nothing(model, cache, sequences) -> None:
    mean = torch.from_numpy(cache.statistics(HOOK).mean).float()
    found = measure(
        model,
        cache,
        sequences,
        {
            "identity": (HOOK, lambda x: x),
            "zero": (HOOK, torch.zeros_like),
            "mean": (HOOK, lambda x: mean.expand_as(x)),
        },
    )
    assert found["identity"].ce_recovered == pytest.approx(1, abs=1e-12)
    assert found["identity"].kl_score == pytest.approx(1, abs=1e-7)
    assert found["identity"].ce_sae == found["identity"].ce_clean
    assert found["identity"].ce_recovered_standard_error == pytest.approx(0, abs=1e-9)
    assert found["zero"].ce_recovered == 0
    assert found["zero"].kl_score == 0
    assert found["zero"].ce_sae == found["zero"].ce_zero
    assert found["mean"].ce_recovered_mean_ablation == 0
    assert found["mean"].ce_sae == found["mean"].ce_mean


def plain(model: TinyModel, cache, sequences, hook: str, replacement) -> tuple[float, float]:
    """CE and KL(clean ‖ replaced), one sequence and one position at a time, in float64."""
    ce, kl = [], []
    for n in range(len(sequences)):
        ids = torch.from_numpy(sequences.ids[n : n + 1])

        def replace(x: Tensor, n: int = n) -> Tensor:
            x = x.clone()
            for position in np.flatnonzero(sequences.spliced[n]):
                x[0, position] = replacement(x[0, position][None])[0]
            return x

        clean = model.logits(ids)[0].double().log_softmax(-1)
        replaced = model.logits_with(ids, hook, replace)[0].double().log_softmax(-1)
        for position in np.flatnonzero(sequences.scored[n]):
            ce.append(-replaced[position, ids[0, position + 1]].item())
            kl.append((clean[position].exp() * (clean[position] - replaced[position])).sum().item())
    return float(np.mean(ce)), float(np.mean(kl))


def test_an_sae_against_the_plain_computation(model, cache, sequences) -> None:
    sae = make_sae(cache, "topk", TopK(k=4))

    def reconstruct(x: Tensor) -> Tensor:
        return sae(x, input="raw")

    found = measure(model, cache, sequences, {"topk": (HOOK, reconstruct)})["topk"]
    ce_clean, _ = plain(model, cache, sequences, HOOK, lambda x: x)
    ce_sae, kl_sae = plain(model, cache, sequences, HOOK, reconstruct)
    ce_zero, kl_zero = plain(model, cache, sequences, HOOK, torch.zeros_like)
    assert found.num_tokens == sequences.scored.sum()
    assert found.ce_clean == pytest.approx(ce_clean, rel=1e-5)
    assert found.ce_sae == pytest.approx(ce_sae, rel=1e-5)
    assert found.ce_zero == pytest.approx(ce_zero, rel=1e-5)
    assert found.kl_sae == pytest.approx(kl_sae, rel=1e-4)
    assert found.ce_recovered == pytest.approx((ce_zero - ce_sae) / (ce_zero - ce_clean), rel=1e-4)
    assert found.kl_score == pytest.approx((kl_zero - kl_sae) / kl_zero, rel=1e-4)
    assert found.activation_mismatch < 1e-3  # float16 rows


def test_intervals_are_those_of_documents_that_are_really_drawn(model, cache, sequences) -> None:
    """A draw repeats all tokens of the documents that it has; figures are computed from these tokens."""
    replacements = {"sae": lambda x: 0.6 * x, "zero": torch.zeros_like}
    spliced, scored = torch.from_numpy(sequences.spliced), torch.from_numpy(sequences.scored)
    ids = torch.from_numpy(sequences.ids)
    clean = model.logits(ids).double().log_softmax(-1)[scored]
    target = ids.roll(-1, 1)[scored][:, None]
    tokens = {"clean": -clean.gather(1, target)[:, 0]}
    for name, replacement in replacements.items():

        def replace(x: Tensor, replacement=replacement) -> Tensor:
            return torch.where(spliced[..., None], replacement(x), x)

        replaced = model.logits_with(ids, HOOK, replace).double().log_softmax(-1)[scored]
        tokens[name] = -replaced.gather(1, target)[:, 0]
        tokens[f"kl_{name}"] = (clean.exp() * (clean - replaced)).sum(1)
        tokens[f"top1_{name}"] = (clean.argmax(1) == replaced.argmax(1)).double()
    _, _, document = cache.locate(sequences.rows[sequences.scored], split="heldout")
    own = {
        name: [values.numpy()[document == one] for one in np.unique(document)]
        for name, values in tokens.items()
    }
    found = measure(model, cache, sequences, {"sae": (HOOK, replacements["sae"])})["sae"]
    random, draws = np.random.default_rng(4), []
    for _ in range(2000):
        drawn = random.integers(0, len(own["sae"]), len(own["sae"]))
        mean = {name: np.concatenate([values[i] for i in drawn]).mean() for name, values in own.items()}
        draws.append(
            {
                "ce_sae": mean["sae"],
                "ce_recovered": (mean["zero"] - mean["sae"]) / (mean["zero"] - mean["clean"]),
                "kl_sae": mean["kl_sae"],
                "kl_score": (mean["kl_zero"] - mean["kl_sae"]) / mean["kl_zero"],
                "top1_sae": mean["top1_sae"],
            }
        )
    for name in draws[0]:
        low, high = np.quantile([draw[name] for draw in draws], [0.025, 0.975])
        assert found.intervals[name] == pytest.approx((low, high), abs=0.12 * (high - low)), name


@pytest.mark.parametrize("per_batch", [1, 3, 10**6])
def test_batches_do_not_matter_and_bound_the_logits(cache, sequences, per_batch: int) -> None:
    model = TinyModel()
    saes = {"half": (HOOK, lambda x: x / 2), "other": (OTHER_HOOK, lambda x: x / 2)}
    whole = measure(model, cache, sequences, saes)
    model.calls.clear()
    found = measure(model, cache, sequences, saes, logit_bytes=4 * per_batch * VOCABULARY * CONTEXT)
    for name in saes:
        for field in ("ce_clean", "ce_sae", "ce_zero", "kl_sae", "ce_recovered_standard_error"):
            assert getattr(found[name], field) == pytest.approx(getattr(whole[name], field), rel=1e-5)
    assert max(n for _, n in model.calls) == min(per_batch, len(sequences))


def test_clean_and_ablated_forwards_are_shared(cache, sequences) -> None:
    model = TinyModel()
    measure(model, cache, sequences, {f"sae{i}": (HOOK, lambda x: x / 2) for i in range(4)})
    names = [name for name, n in model.calls if n == len(sequences)]
    assert names.count("clean") == 1
    assert names.count(HOOK) == 2 + 4  # zero and mean, one per SAE


def test_a_token_budget_takes_whole_sequences(cache) -> None:
    whole = choose_sequences(cache, "heldout", cache.num_rows("heldout"), 10**6, 0)
    few = choose_sequences(cache, "heldout", cache.num_rows("heldout"), 50, 0)
    assert 50 <= few.scored.sum() < 50 + CONTEXT
    assert few.scored.sum() < whole.scored.sum()
    again = choose_sequences(cache, "heldout", cache.num_rows("heldout"), 50, 0)
    other = choose_sequences(cache, "heldout", cache.num_rows("heldout"), 50, 1)
    assert np.array_equal(few.ids, again.ids)
    assert not np.array_equal(few.ids[: len(other)], other.ids[: len(few)])


def test_only_the_first_rows_are_spliced_when_rows_are_limited(cache) -> None:
    few = choose_sequences(cache, "heldout", 40, 10**6, 0)
    assert few.rows.max() < 40
    assert few.spliced.sum() <= 40


def test_training_rows_are_found_when_there_is_nothing_else(cache_without_heldout, model) -> None:
    cache = cache_without_heldout
    found = choose_sequences(cache, "train", 10, 100, 0)
    assert found.scored.sum() >= 100
    rows = found.rows[found.spliced]
    sequence, position, _ = cache.locate(rows, split="train")
    where = np.argwhere(found.spliced)
    assert np.array_equal(position, where[:, 1])
    for n, s in enumerate(sequence):
        assert np.array_equal(np.maximum(cache.tokens[int(s)], 0), found.ids[where[n, 0]])
    # Every position but the excluded ones holds a training row.
    assert found.spliced.sum() == (found.ids != 0).sum()


def test_another_model_is_refused(cache, sequences) -> None:
    class Doubled(TinyModel):
        def _run(self, ids, replace):
            return super()._run(ids, {k: (lambda x, f=f: f(2 * x)) for k, f in replace.items()})

    with pytest.raises(UsageError, match=r"median relative\s+distance 1, expected at most 0\.1"):
        measure(Doubled(), cache, sequences, {"a": (HOOK, lambda x: x)})

    class Wider(TinyModel):
        def _run(self, ids, replace):
            wide = {k: (lambda x, f=f: f(torch.cat([x, x], -1))[..., :16]) for k, f in replace.items()}
            return super()._run(ids, wide)

    with pytest.raises(UsageError, match="width 32, expected 16"):
        measure(Wider(), cache, sequences, {"a": (HOOK, lambda x: x)})


def test_token_ids_beyond_the_vocabulary_are_refused(cache, sequences) -> None:
    class Smaller(TinyModel):
        vocabulary = 3

    with pytest.raises(UsageError, match=r"has the token id \d+, and the model embeds 3 \(0 to 2\)"):
        measure(Smaller(), cache, sequences, {"a": (HOOK, lambda x: x)})


def test_rows_that_nothing_follows_cannot_be_scored(tmp_path, model) -> None:
    from saecache.store import CacheWriter, open_cache

    with CacheWriter(
        tmp_path / "c", hooks={HOOK: 4}, context=2, identity={}, seed=0, heldout_fraction=0.9
    ) as writer:
        n = 20
        writer.write_sequences(
            ids=np.full((n, 2), 3),
            documents=np.arange(2 * n).reshape(n, 2),
            keep=np.ones((n, 2), bool),
            activations={HOOK: torch.randn(2 * n, 4)},
        )
    with pytest.raises(UsageError, match="followed by a token of their document"):
        choose_sequences(open_cache(tmp_path / "c"), "heldout", 10, 10, 0)


def test_scores_without_meaning_are_none() -> None:
    values = recovered(np.array([1.0, 1.0, 1.0]), np.full(3, 0.5), np.array([2.0, 1.0, 0.0]))
    assert np.isnan(values[:2]).all()
    assert values[2] == 0.5
    assert jackknife(np.array([2.0]), np.array([1.0]), np.array([0.5])) is None


def test_the_jackknife_is_the_spread_over_sequences() -> None:
    random = np.random.default_rng(0)
    spread = []
    for _ in range(400):
        clean = random.gamma(4, 1, 60)
        zero, sae = clean + random.gamma(9, 1, 60), clean + random.gamma(2, 0.3, 60)
        spread.append((recovered(zero.sum(), sae.sum(), clean.sum()), jackknife(zero, sae, clean)))
    values, errors = np.array(spread).T
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.15)
