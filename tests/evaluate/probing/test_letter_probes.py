"""Probes of letters against torch's Adam on SAEBench's loss, from the same start and in the same order."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from saecache.evaluate.probing import letter_probes
from saecache.evaluate.probing.letter_probes import PASSES, train_letter_probes


def examples(n: int = 300, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    letter = random.choice([0, 3, 4, 25], n, p=[0.5, 0.3, 0.15, 0.05])
    x = random.standard_normal((n, d)) * (random.random((n, d)) < 0.5)
    x[np.arange(n), np.searchsorted([0, 3, 4, 25], letter)] += 1.5
    return x, letter


def reference(
    x: np.ndarray, letter: np.ndarray, letters: list[int], l1: float, weight_decay: float, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """What SAEBench's train_multi_probe does for 26 letters, those that do not occur left out of the sums."""
    random = np.random.default_rng(7)
    bound = 1 / np.sqrt(x.shape[1])
    start = torch.tensor(random.uniform(-bound, bound, (len(letters), x.shape[1] + 1)))
    weight, bias = (part.clone().requires_grad_() for part in (start[:, :-1], start[:, -1]))
    y = torch.tensor(letter[:, None] == np.array(letters)).double()
    loss_of = torch.nn.BCEWithLogitsLoss(reduction="sum", pos_weight=(1 - y).sum(0) / y.sum(0))
    optimizer = torch.optim.Adam([weight, bias], lr=0.01, weight_decay=weight_decay)
    rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=(1e-5 / 0.01) ** (1 / PASSES))
    for _ in range(PASSES):
        for rows in torch.tensor(random.permutation(len(x))).split(batch):
            logits = torch.tensor(x)[rows] @ weight.T + bias
            loss = loss_of(logits, y[rows]) / (26 * len(rows)) + l1 * weight.abs().sum() / 26
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rate.step()
    return weight.detach().numpy(), bias.detach().numpy()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("l1", "weight_decay"), [(0.0, 1e-4), (0.01, 1e-6), (0.5, 0.3)])
def test_weights_are_those_of_torchs_adam(
    sparse: bool, l1: float, weight_decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letter_probes, "BATCH_WORDS", 128)
    x, letter = examples()
    letters = [0, 3, 4, 25]
    found = train_letter_probes(
        csr_array(x) if sparse else x, letter, letters, l1=l1, weight_decay=weight_decay, seed=7
    )
    weight, bias = reference(x, letter, letters, l1, weight_decay, 128)
    assert np.stack([probe.weight for probe in found]) == pytest.approx(weight, abs=1e-9)
    assert np.array([probe.bias for probe in found]) == pytest.approx(bias, abs=1e-9)
    if l1 == 0:
        right = np.argmax([probe.logits(x) for probe in found], axis=0)
        assert np.mean(np.array(letters)[right] == letter) > 0.6
