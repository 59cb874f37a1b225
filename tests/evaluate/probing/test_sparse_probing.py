"""Sparse probing: pooled texts by hand, accuracies by scikit-learn, a planted concept, and its baselines."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from saecache.evaluate.probing import texts as texts_module
from saecache.evaluate.probing.config import ProbingConfig
from saecache.evaluate.probing.labelled import LabelledTexts
from saecache.evaluate.probing.sparse_probing import choose_inputs, make_tasks, probe_labelled
from saecache.evaluate.probing.texts import TextReader, pool_texts
from saecache.store.normalization import Normalizer
from saecache.train import SAE
from saecache.train.sae_config import HookRows
from saecache.train.sae_hooks import name_of, normalization_of

from .conftest import HOOK, WIDTH, WORDS, WordModel, relu_sae


def random_texts(count: int, words: list[str], seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, random.integers(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("batch_tokens", [1, 40, 10**6])
def test_pooling_is_the_mean_over_words(
    reader: TextReader, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_module, "_BATCH_TOKENS", batch_tokens)
    sae = relu_sae(torch.randn(70, WIDTH, generator=torch.Generator().manual_seed(1)))
    texts = random_texts(30, WORDS, 0)
    found = pool_texts(reader, {"sae": sae}, texts, context=8)
    assert isinstance(reader.model, WordModel)
    for text, raw, codes in zip(texts, found.raw[HOOK], found.codes["sae"].toarray(), strict=True):
        words = text.split()[:7]  # BOS takes one of the eight positions
        x = reader.model.vectors[[WORDS.index(word) for word in words]]
        assert raw == pytest.approx(x.double().mean(0).numpy(), abs=1e-6)
        effects = sae.encode(x, input="raw").double() * sae.W_dec.double().norm(dim=1)
        assert codes == pytest.approx(effects.mean(0).numpy(), abs=1e-4)
    if batch_tokens > 1:
        assert max(n * t for n, t in reader.model.shapes) <= batch_tokens


def test_tasks_are_halves_and_no_test_text_trains() -> None:
    label = np.repeat(np.arange(4), 50)
    is_test = np.arange(200) % 5 == 0
    for number, task in enumerate(make_tasks(label, is_test, list("abcd"), seed=0)):
        for rows, is_class, test in (
            (task.train, task.train_is_class, False),
            (task.test, task.test_is_class, True),
        ):
            assert (is_test[rows] == test).all()
            assert ((label[rows] == number) == is_class).all()
            assert is_class.mean() == 0.5
            assert len(set(rows)) == len(rows)
            others = np.bincount(label[rows][~is_class], minlength=4)
            assert others.max() - others[others > 0].min() <= 2
    assert not set(task.train) & set(task.test)


def test_inputs_with_the_largest_difference_of_means() -> None:
    x = np.random.default_rng(0).standard_normal((60, 9))
    y = np.arange(60) < 30
    x[y, 4] -= 5
    x[y, 7] += 3
    assert choose_inputs(x, y, 2).tolist() == [4, 7]


def planted(reader: TextReader) -> tuple[LabelledTexts, torch.Tensor]:
    """Texts of class ``yes`` hold one of four words; the directions of an SAE whose latent 3 sees these
    words.
    """
    assert isinstance(reader.model, WordModel)
    concept = torch.zeros(WIDTH)
    concept[0] = 1
    reader.model.vectors[:, 0] = 0
    reader.model.vectors[[2, 11, 23, 31], 0] = 4
    with_concept = [WORDS[i] for i in (2, 11, 23, 31)]
    without = [word for word in WORDS if word not in with_concept]
    parts = {}
    for split, count in (("train", 120), ("test", 60)):
        no = random_texts(count, without, seed=count)
        random = np.random.default_rng(count)
        yes = [
            f"{text} {random.choice(with_concept)}" for text in random_texts(count, without, seed=count + 1)
        ]
        parts[split] = {"no": no, "yes": yes}
    directions = 0.3 * torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(4))
    directions[:, 0] = 0
    directions[3] = concept
    return LabelledTexts("planted", **parts), directions


def test_one_latent_finds_a_planted_concept(reader: TextReader) -> None:
    data, directions = planted(reader)
    saes = {"good": relu_sae(directions), "bad": relu_sae(directions[10:])}
    found = probe_labelled(reader, saes, data, ProbingConfig(), 0, show_progress=False)
    good, bad = found["good"], found["bad"]
    assert good.classes == ["no", "yes"]
    assert (good.train_texts, good.test_texts) == (240, 120)
    assert list(good.sparse) == ["1", "2", "5", "10", "20"]
    assert good.sparse["1"].accuracy > 0.97
    assert bad.sparse["1"].accuracy < 0.75
    assert good.model_sparse["1"].accuracy > 0.97  # the concept is an activation of the model too
    assert good.model_dense.accuracy > 0.97
    assert good.model_dense == bad.model_dense
    assert good.sparse["1"].accuracy == pytest.approx(np.mean(good.sparse["1"].by_class))
    low, high = bad.sparse["1"].interval
    assert low < bad.sparse["1"].accuracy < high
    assert high - low < 0.3


def test_a_crosscoder_is_compared_with_its_hooks_side_by_side(reader: TextReader) -> None:
    """Each in the units that it encodes, although the raw rows of one hook are a hundred times larger."""
    parts = [
        HookRows(hook=hook, d_model=WIDTH, normalization=Normalizer("unit_scale", WIDTH, scale).to_dict())
        for hook, scale in ((HOOK, 0.5), ("resid_post.1", 0.005))
    ]
    directions = torch.randn(30, 2 * WIDTH, generator=torch.Generator().manual_seed(1))
    plain = relu_sae(directions)
    sae = SAE(
        plain.cfg.model_copy(
            update={"hook": name_of(parts), "hooks": (*parts,), "normalization": normalization_of(parts)}
        ),
        {name: t for name, t in plain.named_buffers() if name != "threshold"},
    )
    vectors = reader.model.vectors
    rows = {HOOK: vectors, "resid_post.1": 100 * vectors.flip(0)}

    class TwoHooks:
        def activations(self, ids: torch.Tensor, hooks: Sequence[str]) -> dict[str, torch.Tensor]:
            assert sorted(hooks) == sorted(rows)
            return {hook: rows[hook][ids.clamp_min(0)] for hook in hooks}

    texts = random_texts(12, WORDS, 0)
    found = pool_texts(replace(reader, model=TwoHooks()), {"sae": sae}, texts, context=20)
    (raw_nD,) = found.raw.values()
    for text, raw, codes in zip(texts, raw_nD, found.codes["sae"].toarray(), strict=True):
        words = [WORDS.index(word) for word in text.split()]
        x = torch.cat([0.5 * rows[HOOK][words], 0.005 * rows["resid_post.1"][words]], dim=1)
        size = WIDTH**0.5  # rows of norm 1 are probed as rows of norm sqrt(D)
        assert raw == pytest.approx(size * x.double().mean(0).numpy(), abs=1e-5)
        expected = size * directions.norm(dim=1) * (x @ directions.T).relu()
        assert codes == pytest.approx(expected.double().mean(0).numpy(), rel=1e-4, abs=1e-4)
    data, _ = planted(reader)
    probed = probe_labelled(
        replace(reader, model=TwoHooks()), {"sae": sae}, data, ProbingConfig(ks=(1,)), 0, show_progress=False
    )["sae"]
    assert probed.model_dense.accuracy > 0.9


@pytest.mark.parametrize("kinds", [("none", "none"), ("unit", "layer_norm")])
def test_accuracies_do_not_depend_on_the_units_of_the_codes(
    reader: TextReader, kinds: tuple[str, str]
) -> None:
    """The penalty of a probe depends on the size of its inputs. SAEBench's SAEs have decoder rows of norm 1,
    and codes in the size of activations.
    """
    data, directions = planted(reader)
    plain = relu_sae(directions[10:])
    sizes = torch.rand(len(directions) - 10, generator=torch.Generator().manual_seed(2)) * 20 + 0.1
    saes = {}
    for name, kind, size in zip("ab", kinds, (torch.ones(()), sizes[:, None]), strict=True):
        normalization = Normalizer(kind, WIDTH).to_dict()
        tensors = {name: t.clone() for name, t in plain.named_buffers() if t is not None}
        tensors["W_enc"] *= size
        tensors["W_dec"] /= size
        saes[name] = SAE(plain.cfg.model_copy(update={"name": name, "normalization": normalization}), tensors)
    found = probe_labelled(reader, saes, data, ProbingConfig(ks=(1, 5)), 0, show_progress=False)
    assert found["a"].sparse == found["b"].sparse
    assert found["a"].dense == found["b"].dense
    assert 0.5 < found["a"].sparse["5"].accuracy < 1


def test_accuracies_are_those_of_scikit_learn(reader: TextReader) -> None:
    """And their intervals are those of texts that are really drawn."""
    data, directions = planted(reader)
    sae = relu_sae(directions[10:])
    found = probe_labelled(reader, {"sae": sae}, data, ProbingConfig(ks=(3,)), 5, show_progress=False)["sae"]
    texts, label, is_test = [], [], []
    for number, name in enumerate(data.train):
        for part, test in ((data.train[name], False), (data.test[name], True)):
            texts += part
            label += [number] * len(part)
            is_test += [test] * len(part)
    pooled = pool_texts(reader, {"sae": sae}, texts, 128)
    tasks = make_tasks(np.array(label), np.array(is_test), ["no", "yes"], 5)
    for x, sparse, dense in (
        (pooled.codes["sae"].toarray(), found.sparse["3"], found.dense),
        (pooled.raw[HOOK], found.model_sparse["3"], found.model_dense),
    ):
        right = {"sparse": [], "dense": []}  # by task: test text -> whether the probe is right
        for number, task in enumerate(tasks):
            means = [x[task.train][task.train_is_class == c].mean(0) for c in (True, False)]
            best = np.argsort(-np.abs(means[0] - means[1]))[:3]
            for inputs, accuracy in ((best, sparse), (slice(None), dense)):
                probe = LogisticRegression(max_iter=1000, tol=1e-8)
                probe.fit(x[task.train][:, inputs], task.train_is_class)
                expected = probe.score(x[task.test][:, inputs], task.test_is_class)
                assert accuracy.by_class[number] == pytest.approx(expected, abs=1e-9)
                is_right = probe.predict(x[task.test][:, inputs]) == task.test_is_class
                kind = "sparse" if accuracy is sparse else "dense"
                right[kind].append(dict(zip(task.test.tolist(), is_right, strict=True)))
        random = np.random.default_rng(11)
        for kind, accuracy in (("sparse", sparse), ("dense", dense)):
            tested = sorted({text for of_task in right[kind] for text in of_task})
            draws = []
            for _ in range(2000):
                drawn = random.choice(tested, len(tested))
                draws.append(np.mean([np.mean([by[i] for i in drawn if i in by]) for by in right[kind]]))
            low, high = np.quantile(draws, [0.025, 0.975])
            assert accuracy.interval == pytest.approx((low, high), abs=0.01 + 0.1 * (high - low))
