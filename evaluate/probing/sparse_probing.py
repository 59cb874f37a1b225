"""k-sparse probing: how much of a labelled concept a few latents hold. SAEBench's ``sparse_probing``.

Every class of a data set is a binary task, half of whose texts are of the class. A text is the mean of its
activations. The k latents whose means differ most between the halves of the training texts are the inputs of
a logistic regression (L2, C = 1); the figure is its accuracy on test texts, averaged over the classes. Beside
it stand the same figure for the k activations of the model that differ most, and for probes that see all
latents and all activations.
Legend: n texts, d inputs (latents or activations).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.progress import progress_bar
from ...distributed.group import ALONE, Group
from ...train import SAE
from ..metrics.bootstrap import (
    Floats,
    draw_weights,
    group_documents,
    percentile_interval,
    ratio,
    sum_by_group,
)
from ..results import ProbingAccuracy, ProbingResult, spread_records
from .config import ProbingConfig
from .labelled import LabelledTexts
from .logistic import fit_logistic
from .texts import TextReader, baseline_of, pool_texts


@dataclass(frozen=True)
class ProbingTask:
    """The binary task of one class: numbers of texts, and which of them are of the class, bool."""

    train: np.ndarray
    train_is_class: np.ndarray
    test: np.ndarray
    test_is_class: np.ndarray


def probe_labelled(
    reader: TextReader,
    saes: Mapping[str, SAE],
    data: LabelledTexts,
    config: ProbingConfig,
    seed: int,
    *,
    group: Group = ALONE,
    show_progress: bool = True,
) -> dict[str, ProbingResult]:
    """Probe every SAE for the classes of ``data``; by name.

    The processes of ``group`` share the texts, and then the probes; all get the results.
    """
    texts, label_n, is_test_n = _flatten(data)
    pooled = pool_texts(reader, saes, texts, config.context, group)
    tasks = make_tasks(label_n, is_test_n, list(data.train), seed)
    inputs = {("model", of): x_nd for of, x_nd in pooled.raw.items()}
    inputs |= {("sae", name): codes for name, codes in pooled.codes.items()}
    probes = [(key, k) for k in (None, *config.ks) for key in inputs]  # the slowest ones come first
    own = len(probes[group.rank :: group.size])
    with progress_bar(f"probing {data.name}", "probe", own, hidden=not show_progress) as progress:

        def measure(some: Sequence[tuple[tuple[str, str], int | None]]) -> list[ProbingAccuracy]:
            found = []
            for key, k in some:
                found.append(_accuracy(inputs[key], tasks, k, seed))
                progress.update(1)
            return found

        measured = spread_records(group, probes, measure, ProbingAccuracy)
    accuracy = dict(zip(probes, measured, strict=True))

    def sparse(key: tuple[str, str]) -> dict[str, ProbingAccuracy]:
        return {str(k): accuracy[key, k] for k in config.ks}

    return {
        name: ProbingResult(
            data=data.name,
            classes=list(data.train),
            train_texts=int((~is_test_n).sum()),
            test_texts=int(is_test_n.sum()),
            sparse=sparse(("sae", name)),
            dense=accuracy[("sae", name), None],
            model_sparse=sparse(("model", baseline_of(sae))),
            model_dense=accuracy[("model", baseline_of(sae)), None],
        )
        for name, sae in saes.items()
    }


def _flatten(data: LabelledTexts) -> tuple[list[str], np.ndarray, np.ndarray]:
    """All texts, the class of each, int64 [n], and whether it is a test text, bool [n]."""
    texts: list[str] = []
    label, is_test = [], []
    for number, name in enumerate(data.train):
        for part, test in ((data.train[name], False), (data.test[name], True)):
            texts += part
            label += [number] * len(part)
            is_test += [test] * len(part)
    return texts, np.asarray(label), np.asarray(is_test)


def make_tasks(
    label_n: np.ndarray, is_test_n: np.ndarray, classes: Sequence[str], seed: int
) -> list[ProbingTask]:
    """One binary task per class. The other classes share its other half equally."""
    random = np.random.default_rng(seed)
    tasks = []
    for number in range(len(classes)):
        halves = []
        for is_part_n in (~is_test_n, is_test_n):
            positive = np.flatnonzero(is_part_n & (label_n == number))
            share = -(-len(positive) // (len(classes) - 1))
            others = [np.flatnonzero(is_part_n & (label_n == o)) for o in range(len(classes)) if o != number]
            negative = np.concatenate([random.permutation(other)[:share] for other in others])
            negative = random.permutation(negative)[: len(positive)]
            chosen = np.concatenate([positive, negative])
            halves += [chosen, np.arange(len(chosen)) < len(positive)]
        tasks.append(ProbingTask(*halves))
    return tasks


def choose_inputs(x_nd: Any, is_class_n: np.ndarray, k: int) -> np.ndarray:
    """The k inputs whose means differ most between the classes, int64 [k]; ties go to the lowest."""
    difference = np.abs(_mean(x_nd[is_class_n]) - _mean(x_nd[~is_class_n]))
    return np.argsort(-difference, kind="stable")[:k]


def _mean(x_nd: Any) -> Floats:
    means: Floats = np.asarray(x_nd.mean(axis=0)).reshape(-1)
    return means


def _accuracy(x_nd: Any, tasks: Sequence[ProbingTask], k: int | None, seed: int) -> ProbingAccuracy:
    """The test accuracy of a probe of k inputs, or of all (None), averaged over the tasks; its interval is
    over test texts, which several tasks share.
    """
    num_texts = x_nd.shape[0]
    right, asked = np.zeros((2, len(tasks), num_texts))
    for number, task in enumerate(tasks):
        x_train, x_test = x_nd[task.train], x_nd[task.test]
        if k is not None:
            inputs = choose_inputs(x_train, task.train_is_class, k)
            x_train, x_test = _dense(x_train[:, inputs]), _dense(x_test[:, inputs])
        probe = fit_logistic(x_train, task.train_is_class)
        right[number, task.test] = (probe.logits(x_test) > 0) == task.test_is_class
        asked[number, task.test] = 1
    by_class = right.sum(1) / asked.sum(1)
    tested = np.flatnonzero(asked.any(0))
    group, num_groups = group_documents(tested)
    right_CG, asked_CG = (
        np.stack([sum_by_group(group, values[tested], num_groups) for values in table])
        for table in (right, asked)
    )
    weights_RG = draw_weights(num_groups, seed)
    interval = None
    if weights_RG is not None:
        interval = percentile_interval(ratio(weights_RG @ right_CG.T, weights_RG @ asked_CG.T).mean(1))
    return ProbingAccuracy(
        accuracy=float(by_class.mean()), by_class=[float(a) for a in by_class], interval=interval
    )


def _dense(x_nd: Any) -> Floats:
    dense: Floats = np.asarray(x_nd.toarray() if hasattr(x_nd, "toarray") else x_nd, dtype=np.float64)
    return dense
