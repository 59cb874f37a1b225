"""Feature absorption: whether a latent for "begins with L" stays silent on words that another latent covers.

Chanin et al. 2024, as SAEBench 0.6 computes it. A probe finds the direction of each first letter in the
model's activations. The main latents of a letter are those that predict it. Where the probe sees the letter
of a test word and the main latents do not carry it, other latents that point along the probe may have
absorbed it. Everything is in the space of the SAE's normalized rows, with E|x|² = D, so that codes and
projections have one unit.
Legend: n words, D model width, F latents, V test words whose letter the probe sees.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from ...common.progress import progress_bar
from ...distributed.group import ALONE, Group
from ...train import SAE
from ...train.sae_hooks import encoded_hooks
from ..metrics.bootstrap import Floats, draw_weights, group_documents, intervals_of, sum_by_group
from ..results import AbsorptionResult, LetterAbsorption
from .letter_probes import train_letter_probes
from .letters import LETTERS, LetterWords
from .logistic import LogisticProbe, balanced_weights, f1_score, fit_logistic
from .texts import TextReader, effects_of, gather_sparse, scale_for_probes

MIN_PROBE_F1 = 0.6  # a letter that the probe finds less well is left out
MIN_LETTERS = 20  # fewer such letters: the model cannot do the task
MAX_MAIN = 10
F1_JUMP = 0.03  # a further main latent must raise F1 by more
MAX_ABSORBERS = 3
MIN_COSINE, MIN_COSINE_FULL = 0.1, 0.025  # of an absorber and the probe
MIN_SHARE = 0.4  # of the word's projection on the probe that absorbers must hold
SILENT = 1e-8
_WORDS_AT_ONCE = 512
_PROBE = {"l1": 0.0, "weight_decay": 1e-4}  # of the probes of activations
_SPARSE_PROBE = {"l1": 0.01, "weight_decay": 1e-6}  # of those that order the latents


def measure_absorption(
    reader: TextReader,
    saes: Mapping[str, SAE],
    words: LetterWords,
    seed: int,
    *,
    group: Group = ALONE,
    show_progress: bool = True,
) -> dict[str, AbsorptionResult]:
    """Measure the absorption of first letters by each SAE on ``words``; by name.

    The processes of ``group`` share the prompts, and then the letters; all get the results.
    Where the model does not know at least :data:`MIN_LETTERS` letters, the result says so and holds no
    figures.
    """
    hooks = list(dict.fromkeys(sae.cfg.hook for sae in saes.values()))
    activations = words.read(reader, hooks, group)
    found: dict[str, AbsorptionResult] = {}
    probes: dict[tuple[str, str], dict[int, LogisticProbe]] = {}
    with progress_bar("absorption", "SAE", len(saes), hidden=not show_progress) as progress:
        for name, sae in saes.items():
            normalized, _ = sae.normalizer.apply(activations[sae.cfg.hook])
            x_nD = scale_for_probes(encoded_hooks(sae.cfg)[0]) * normalized.double().numpy()
            key = (sae.cfg.hook, str(sae.normalizer))
            if key not in probes:
                probes[key] = _fit_probes(x_nD, words, seed, group)
            found[name] = _measure(sae, x_nD, _codes(sae, normalized, group), words, probes[key], seed, group)
            progress.update(1)
    return found


def _codes(sae: SAE, normalized_nD: torch.Tensor, group: Group) -> Any:
    """What each latent adds along its direction (:func:`.texts.effects_of`), sparse float64 [n, F]."""
    parts, blocks = [], torch.split(normalized_nD, _WORDS_AT_ONCE)
    for number in group.share(len(blocks)):
        pairs = sae.encode_sparse(blocks[number].to(sae.W_dec.device))
        entries = (effects_of(sae, pairs), pairs.latent.cpu().numpy(), pairs.row_ptr.cpu().numpy())
        parts.append(csr_array(entries, shape=(pairs.num_rows, pairs.num_latents)))
    return gather_sparse(group, parts, sae.cfg.num_latents)


def _fit_probes(x_nD: Floats, words: LetterWords, seed: int, group: Group) -> dict[int, LogisticProbe]:
    """A probe per letter that occurs in both splits, against all other letters."""
    letters = _letters_in_both(words)

    def fit() -> list[tuple[list[float], float]]:
        train = ~words.is_test
        probes = train_letter_probes(x_nD[train], words.letter[train], letters, seed=seed, **_PROBE)
        return [(probe.weight.tolist(), probe.bias) for probe in probes]

    fitted = zip(letters, group.on_first(fit), strict=True)
    return {letter: LogisticProbe(np.asarray(weight), bias) for letter, (weight, bias) in fitted}


def order_latents(
    codes_nF: Any, letter_n: np.ndarray, letters: Sequence[int], seed: int
) -> dict[int, np.ndarray]:
    """Up to :data:`MAX_MAIN` latents of each of ``letters``, int64, that predict it best.

    That is in the order of their weights in a probe of all active latents with an L1 penalty.
    """
    active = np.flatnonzero(np.asarray((codes_nF != 0).sum(0)).reshape(-1))
    probes = train_letter_probes(codes_nF[:, active], letter_n, letters, seed=seed, **_SPARSE_PROBE)
    return {
        letter: active[np.argsort(-probe.weight, kind="stable")][:MAX_MAIN]
        for letter, probe in zip(letters, probes, strict=True)
    }


def _letters_in_both(words: LetterWords) -> list[int]:
    train, test = words.letter[~words.is_test], words.letter[words.is_test]
    return sorted({int(letter) for letter in train} & {int(letter) for letter in test})


def _measure(
    sae: SAE,
    x_nD: Floats,
    codes_nF: Any,
    words: LetterWords,
    probes: Mapping[int, LogisticProbe],
    seed: int,
    group: Group,
) -> AbsorptionResult:
    test = words.is_test
    f1 = {
        letter: f1_score(probe.logits(x_nD[test]) > 0, words.letter[test] == letter)
        for letter, probe in probes.items()
    }
    known = [letter for letter in probes if f1[letter] > MIN_PROBE_F1]
    if len(known) < MIN_LETTERS:
        return AbsorptionResult(
            num_words=len(words.words),
            refused=(
                "the model does not know first letters well enough: probes of its activations find "
                f"{len(known)} letters with F1 above {MIN_PROBE_F1}, expected at least {MIN_LETTERS}. Larger "
                "models, of about 2 billion parameters or more, do."
            ),
        )
    unit_FD = torch.nn.functional.normalize(sae.W_dec, dim=1).double().cpu().numpy()
    train = ~test
    order = group.on_first(
        lambda: [
            latents.tolist()
            for latents in order_latents(codes_nF[train], words.letter[train], list(probes), seed).values()
        ]
    )
    latents = {letter: np.asarray(own) for letter, own in zip(probes, order, strict=True)}

    def measure(some: Sequence[int]) -> list[dict[str, Any]]:
        return [
            _measure_letter(letter, x_nD, codes_nF, unit_FD, words, probes[letter], latents[letter])
            for letter in some
        ]

    letters, fractions, full, letter_V = [], [], [], []
    for letter, found in zip(known, group.spread(known, measure), strict=True):
        scores = found["scores"]
        fractions += [fraction for fraction, _ in scores]
        full += [float(is_full) for _, is_full in scores]
        letter_V += [letter] * len(scores)
        letters.append(
            LetterAbsorption(
                letter=LETTERS[letter],
                probe_f1=f1[letter],
                true_positives=len(scores),
                main_latents=found["main_latents"],
                sparse_f1=found["sparse_f1"],
                absorption_fraction=float(np.mean([fraction for fraction, _ in scores])),
                full_absorption=float(np.mean([is_full for _, is_full in scores])),
            )
        )
    values = {"absorption_fraction": np.asarray(fractions), "full_absorption": np.asarray(full)}
    return AbsorptionResult(
        num_words=len(words.words),
        absorption_fraction=float(np.mean([letter.absorption_fraction for letter in letters])),
        full_absorption=float(np.mean([letter.full_absorption for letter in letters])),
        main_latents=float(np.mean([len(letter.main_latents) for letter in letters])),
        letters=letters,
        intervals=_intervals(values, np.asarray(letter_V), seed),
    )


def _measure_letter(
    letter: int,
    x_nD: Floats,
    codes_nF: Any,
    unit_FD: Floats,
    words: LetterWords,
    probe: LogisticProbe,
    order: np.ndarray,
) -> dict[str, Any]:
    """The main latents of one letter, their F1, and the scores of the test words that the probe sees."""
    test, is_letter = words.is_test, words.letter == letter
    splits = codes_nF[~test], is_letter[~test], codes_nF[test], is_letter[test]
    main, sparse_f1 = find_main_latents(order, *splits)
    seen = np.flatnonzero(test & is_letter)
    seen = seen[probe.logits(x_nD[seen]) > 0]
    direction_D = probe.weight / np.linalg.norm(probe.weight)
    cosine_F = unit_FD @ direction_D
    scores = [
        absorption_of_word(codes_nF[[i]].toarray()[0], float(x_nD[i] @ direction_D), cosine_F, main)
        for i in seen
    ]
    return {
        "main_latents": [int(latent) for latent in main], "sparse_f1": sparse_f1, "scores": scores,
    }  # fmt: skip


def find_main_latents(
    order: np.ndarray, train_nF: Any, train_y_n: np.ndarray, test_nF: Any, test_y_n: np.ndarray
) -> tuple[np.ndarray, float]:
    """The latents that predict a letter, int64 [k], and the F1 of a probe that sees only them.

    The next latent of ``order`` is taken while the F1 on the test words of a balanced probe of the first k
    rises by more than :data:`F1_JUMP`.
    """
    balanced = balanced_weights(train_y_n)
    main, best = order[:0], -np.inf
    for k in range(1, len(order) + 1):
        inputs = order[:k]
        probe = fit_logistic(train_nF[:, inputs].toarray(), train_y_n, example_weight_n=balanced)
        score = f1_score(probe.logits(test_nF[:, inputs].toarray()) > 0, test_y_n)
        if not score > best + F1_JUMP:
            break
        main, best = inputs, score
    return main, float(max(best, 0.0))


def absorption_of_word(
    code_F: Floats, probe_projection: float, cosine_F: Floats, main: np.ndarray
) -> tuple[float, bool]:
    """The absorbed share of one word's letter, in [0, 1], and whether one latent holds it alone.

    Args:
        code_F: what each latent adds along its decoder direction.
        probe_projection: the row's projection on the letter's direction.
        cosine_F: of each decoder direction with the letter's.
        main: the letter's main latents.
    """
    projection_F = code_F * cosine_F
    main_projection = float(projection_F[main].sum())
    others = np.ones(len(code_F), dtype=bool)
    others[main] = False
    absorbing = projection_F[others & (cosine_F >= MIN_COSINE) & (projection_F > 0)]
    absorbed = float(np.sort(absorbing)[::-1][:MAX_ABSORBERS].sum())
    if (
        probe_projection <= 0
        or main_projection >= probe_projection
        or absorbed / probe_projection < MIN_SHARE
    ):
        fraction = 0.0
    elif main_projection <= 0:
        fraction = 1.0
    else:
        absorbed = min(absorbed, probe_projection - main_projection)
        fraction = min(max(absorbed / (absorbed + main_projection), 0.0), 1.0)
    top = int(np.argmax(projection_F))
    is_full = (
        probe_projection > 0
        and (np.abs(code_F[main]) < SILENT).all()
        and cosine_F[top] >= MIN_COSINE_FULL
        and projection_F[top] / probe_projection >= MIN_SHARE
    )
    return fraction, bool(is_full)


def _intervals(
    values: Mapping[str, Floats], letter_V: np.ndarray, seed: int
) -> dict[str, tuple[float, float]]:
    """Intervals of means over letters of means over their words, by drawing words."""
    group, num_groups = group_documents(np.arange(len(letter_V)))
    weights_RG = draw_weights(num_groups, seed)
    if weights_RG is None:
        return {}
    draws = {}
    for name, value_V in values.items():
        by_letter = []
        for letter in np.unique(letter_V):
            here = letter_V == letter
            sums = sum_by_group(group[here], value_V[here], num_groups)
            counts = weights_RG @ sum_by_group(group[here], None, num_groups)
            # A draw without any word of a letter says nothing of it: the letter's own mean stands in.
            own = np.full(len(counts), value_V[here].mean())
            drawn = np.divide(weights_RG @ sums, counts, out=own, where=counts > 0)
            by_letter.append(drawn)
        draws[name] = np.mean(by_letter, axis=0)
    return intervals_of(draws)
