"""Fidelity and sparsity against plain float64 definitions, and streaming against the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score

from saecache.evaluate.metrics import CodeStream, ReconstructionStream, quantile_of_counts
from saecache.train import Pairs


def random_rows(num_rows: int = 500, mean: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, 12, generator=random) * torch.linspace(0.1, 2, 12) + mean
    return x, x + 0.3 * torch.randn(x.shape, generator=random)


def streamed(x: torch.Tensor, reconstruction: torch.Tensor, cuts: list[int]):
    stream = ReconstructionStream()
    for a, b in zip([0, *cuts], [*cuts, len(x)], strict=True):
        stream.update(x[a:b], reconstruction[a:b])
    return stream.result()


def test_fidelity_is_the_float64_definition() -> None:
    x, reconstruction = random_rows()
    result = streamed(x, reconstruction, [100, 101, 350])
    x64, r64 = x.numpy().astype(np.float64), reconstruction.numpy().astype(np.float64)
    error = ((x64 - r64) ** 2).sum(1).mean()
    variance = (x64**2).sum(1).mean() - (x64.mean(0) ** 2).sum()
    assert result.fvu == pytest.approx(error / variance, rel=1e-12)
    assert result.explained_variance == pytest.approx(1 - error / variance, rel=1e-12)
    assert result.mse == pytest.approx(((x64 - r64) ** 2).mean(), rel=1e-12)
    cosine = (x64 * r64).sum(1) / np.linalg.norm(x64, axis=1) / np.linalg.norm(r64, axis=1)
    assert result.cosine == pytest.approx(cosine.mean(), rel=1e-12)


def test_explained_variance_is_scikit_learns_variance_weighted_r2() -> None:
    x, reconstruction = random_rows()
    result = streamed(x, reconstruction, [])
    expected = r2_score(x.double().numpy(), reconstruction.double().numpy(), multioutput="variance_weighted")
    assert result.explained_variance == pytest.approx(expected, rel=1e-10)


def test_the_mean_row_has_fvu_one_and_a_constant_bias_is_not_forgiven() -> None:
    x, _ = random_rows()
    mean = x.double().mean(0).expand_as(x)
    assert streamed(x, mean, [7]).fvu == pytest.approx(1, abs=1e-12)
    assert streamed(x, x + 1, [7]).fvu == pytest.approx(12 / x.double().var(0, correction=0).sum().item())


def test_a_mean_much_larger_than_the_spread_costs_no_digits() -> None:
    x, reconstruction = random_rows(mean=3.0)
    shifted = x.double() + 1e7
    result = streamed(shifted, reconstruction.double() + 1e7, list(range(10, 500, 10)))
    assert result.fvu == pytest.approx(streamed(x, reconstruction, []).fvu, rel=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 500), max_size=12))
def test_streaming_is_the_whole(cuts: list[int]) -> None:
    x, reconstruction = random_rows()
    one, many = streamed(x, reconstruction, []), streamed(x, reconstruction, sorted(cuts))
    for field in ("fvu", "mse", "cosine"):
        assert getattr(many, field) == pytest.approx(getattr(one, field), rel=1e-12)


def test_constant_rows_have_no_fvu_and_zero_reconstructions_cosine_zero() -> None:
    result = streamed(torch.ones(10, 4), torch.zeros(10, 4), [])
    assert result.fvu is None
    assert result.explained_variance is None
    assert result.cosine == 0


def test_wrong_shapes_and_no_rows_are_errors() -> None:
    with pytest.raises(ValueError, match=r"x is \(2, 3\)"):
        ReconstructionStream().update(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="no rows"):
        ReconstructionStream().result()
    with pytest.raises(ValueError, match="no rows"):
        CodeStream(3).result()
    with pytest.raises(ValueError, match="expected codes over 3 latents, got 4"):
        CodeStream(3).update(Pairs.from_dense(torch.zeros(2, 4)))


def random_codes() -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    codes = torch.randn(400, 30, generator=random) * (torch.rand(400, 30, generator=random) < 0.2)
    codes[:, :3] = 0
    codes[:, 3] = codes[:, 3].abs() + 1  # dense
    codes[:, 4] = -codes[:, 4].abs()  # never above 0
    return codes


@pytest.mark.parametrize("block", [1, 7, 400])
def test_codes_against_dense_definitions(block: int) -> None:
    dense = random_codes()
    stream = CodeStream(30)
    for part in dense.split(block):
        stream.update(Pairs.from_dense(part))
    result = stream.result()
    l0 = (dense != 0).sum(1)
    assert result.l0 == pytest.approx(l0.double().mean().item())
    assert result.l1 == pytest.approx(dense.double().abs().sum(1).mean().item())
    assert (result.l0_min, result.l0_max) == (l0.min(), l0.max())
    assert result.alive == ((dense != 0).sum(0) > 0).sum() == 27
    assert result.dead == 3
    assert result.dense_share == pytest.approx(((dense != 0).double().mean(0) > 0.1).double().mean().item())
    assert torch.equal(stream.density(), (dense != 0).double().mean(0))
    assert torch.equal(stream.rows_by_l0, torch.bincount(l0, minlength=31))
    for q, value in result.l0_quantiles.items():
        assert value == np.quantile(l0.numpy(), float(q), method="inverted_cdf")


def test_a_pair_of_value_zero_counts_for_nothing() -> None:
    codes = Pairs.from_rows(
        torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([0.0, 2.0]), num_rows=1, num_latents=4
    )
    stream = CodeStream(4)
    stream.update(codes)
    assert stream.result().l0 == 1
    assert stream.result().alive == 1


def test_quantiles_of_counts() -> None:
    counts = np.array([0, 3, 0, 1])
    assert [quantile_of_counts(counts, q) for q in (0, 0.75, 0.76, 1)] == [0, 1, 3, 3]
