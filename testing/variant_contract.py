"""The contract of every variant: its test inherits ``VariantContract`` and adds a dense definition."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from ..common.errors import UsageError
from ..store.normalization import NORMALIZATIONS
from ..store.reading.reader import ActivationCache
from ..train import TrainConfig, load_sae, run
from ..train.engine.trainee import DivergedError, Trainee
from ..train.pairs import Pairs
from ..train.variants.base.rows import Batch
from .run_folders import folder_bytes, metrics, rewind, run_bytes
from .shapes import SHAPES
from .sparse_rows import small_run, write_cache_of_two_hooks, write_sparse_cache
from .stepping import take_step
from .variant_example import PLAN, VariantExample


class VariantContract(VariantExample):
    """Tests of one kind. Subclasses are named ``Test...`` so that pytest finds them."""

    has_dead_term: ClassVar[bool] = False
    heldout_fvu_below: ClassVar[float] = 0.6
    """The bound after 60 steps; it is higher for training rules that inference cannot follow."""

    @pytest.fixture
    def cache(self, tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
        """3000 rows of width 24, about a tenth of them held out; one for all classes."""
        return _shared_cache(tmp_path_factory.getbasetemp())

    @pytest.fixture
    def cache_of_two_hooks(self, tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
        """Those rows under ``resid``, and under ``out`` a function of them; one for all classes."""
        return _shared_cache_of_two_hooks(tmp_path_factory.getbasetemp())

    @pytest.fixture
    def make_config(self) -> Callable[..., TrainConfig]:
        """See :func:`small_run`."""
        return small_run

    # ---- gradients

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dead_share", [0.0, 0.3])
    @pytest.mark.parametrize("part_rows", [64, 1000], ids=["in parts", "whole"])
    def test_gradients_match_dense_autograd(
        self, dead_share: float, part_rows: int, shape: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.shape = SHAPES[shape]
        monkeypatch.setattr(Batch.split, "__defaults__", (part_rows,))
        parameters, x = self.example()
        dead = torch.rand(PLAN.num_latents, generator=torch.Generator().manual_seed(3)) < dead_share
        batch = self.step_on(parameters, x, dead)
        exact = {name: t.double().requires_grad_() for name, t in parameters.items()}
        losses, codes = self.reference(self.shape.dense(exact), x.double(), dead)
        total = torch.stack(list(losses.values())).sum()
        wanted = torch.autograd.grad(total, list(exact.values()), allow_unused=True)

        assert {n: float(v) for n, v in batch.outcome.losses.items()} == pytest.approx(
            {name: float(value.detach()) for name, value in losses.items()}, rel=1e-5
        )
        assert ("auxk" in losses) == (self.has_dead_term and dead_share > 0)
        for name, gradient in zip(exact, wanted, strict=True):
            gradient = torch.zeros_like(exact[name]) if gradient is None else gradient
            error = (batch.gradients[name].double() - gradient).norm() / gradient.norm().clamp_min(1e-12)
            assert float(error) < 1e-5, f"{name}: relative error {float(error):.1e}"
        error_BO = self.error(exact, codes, x.double()).detach()
        assert float(batch.outcome.squared_error) == pytest.approx(float(error_BO.square().sum()), rel=1e-5)
        assert torch.equal(batch.outcome.firing, (codes != 0).sum(0))
        assert torch.equal(torch.cat(batch.outcome.row_l0), (codes != 0).sum(1))

    def test_nan_stops_the_step_before_a_parameter_changes(self) -> None:
        parameters, x = self.example()
        config = TrainConfig.model_validate({"variants": [self.settings], "num_latents": 96, "steps": 8})
        trainee = Trainee(self.variant, PLAN, 0, config.optimizer, parameters)
        before = {name: tensor.clone() for name, tensor in trainee.parameters.items()}
        x[3, 5] = torch.nan
        with torch.no_grad(), pytest.raises(DivergedError):
            take_step(trainee, x - trainee.parameters["b_dec"], 0, 1.0, 10**9)
        assert all(torch.equal(before[name], trainee.parameters[name]) for name in before)

    # ---- codes

    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_prediction_is_the_definition(self, shape: str) -> None:
        self.shape = SHAPES[shape]
        sae, x = self.trained_sae()
        tensors = dict(sae.named_buffers())
        codes = sae.encode(x)
        torch.testing.assert_close(sae(x), self.error(tensors, codes, x) + self.target(x))
        raw = sae.to_raw(sae(x), sae.normalizer.apply(x)[1])
        assert raw.shape == (len(x), self.plan.d_decoded)
        wanted = sae(sae.normalizer.apply(x)[0])
        removed = sae.normalizer.apply(x)[1]
        torch.testing.assert_close(sae(x, input="raw"), sae.to_raw(wanted, removed))

    def test_training_codes_are_the_definition(self) -> None:
        sae, x = self.trained_sae()
        tensors = {name: t.double() for name, t in sae.named_buffers()}
        _, wanted = self.reference(tensors, x.double(), torch.zeros(PLAN.num_latents, dtype=torch.bool))
        torch.testing.assert_close(sae.encode(x, as_trained=True).double(), wanted, rtol=1e-4, atol=1e-5)

    def test_sparse_codes_are_the_dense_codes(self) -> None:
        sae, x = self.trained_sae()
        for as_trained in (False, True):
            pairs = sae.encode_sparse(x, as_trained=as_trained)
            dense = sae.encode(x, as_trained=as_trained)
            assert isinstance(pairs, Pairs) and pairs.num_rows == x.shape[0]
            place = pairs.rows() * PLAN.num_latents + pairs.latent
            assert bool((place.diff() > 0).all())  # latents ascend within a row
            assert dense.shape == (x.shape[0], PLAN.num_latents)
            assert torch.equal(pairs.to_dense(), dense)
            torch.testing.assert_close(sae.decode(pairs), sae.decode(dense))

    def test_inference_looks_at_one_row_at_a_time(self) -> None:
        sae, x = self.trained_sae()
        x = 0.9 * x  # in the batch that set the thresholds some values equal one
        together = sae.encode(x)
        alone = torch.cat([sae.encode(x[i : i + 1]) for i in range(16)])
        torch.testing.assert_close(alone, together[:16])

    @pytest.mark.parametrize("kind", NORMALIZATIONS)
    def test_raw_in_raw_out(self, kind: str) -> None:
        sae, x = self.trained_sae(normalization={"kind": kind, "d_model": PLAN.d_model, "scale": 3.0})
        raw = 5 * x + 2
        normalized, removed = sae.normalizer.apply(raw)
        torch.testing.assert_close(sae.encode(raw, input="raw"), sae.encode(normalized))
        wanted = sae.normalizer.invert(sae(normalized), removed)
        torch.testing.assert_close(sae(raw, input="raw"), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sae(raw[None], input="raw"), wanted[None], rtol=1e-4, atol=1e-4)

    # ---- files

    @pytest.mark.parametrize("shape", SHAPES)
    def test_save_and_load(self, shape: str, tmp_path: Path) -> None:
        self.shape = SHAPES[shape]
        sae, x = self.trained_sae()
        sae.save(tmp_path / "a")
        loaded = load_sae(tmp_path / "a")
        assert loaded.cfg == sae.cfg
        assert torch.equal(loaded.encode(x), sae.encode(x)) and torch.equal(loaded(x), sae(x))
        loaded.save(tmp_path / "b")
        assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")
        assert sorted(folder_bytes(tmp_path / "a")) == ["cfg.json", "weights.safetensors"]

    def test_config_round_trip(self) -> None:
        variant = self.variant
        assert type(variant).model_validate(variant.model_dump()) == variant
        assert type(variant).model_validate_json(variant.model_dump_json()) == variant
        config = TrainConfig.model_validate({"variants": [self.settings], "num_latents": 96, "steps": 8})
        assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
        assert type(config.variants[0]) is type(variant)

    # ---- runs

    @pytest.mark.parametrize("shape", SHAPES)
    def test_same_seed_same_bytes_and_resume_is_exact(
        self,
        shape: str,
        cache_of_two_hooks: ActivationCache,
        make_config: Callable[..., TrainConfig],
        tmp_path: Path,
    ) -> None:
        cache, config = cache_of_two_hooks, make_config(self.settings, **SHAPES[shape].run)
        name = config.variants[0].run_name
        first, again = tmp_path / "first", tmp_path / "again"
        assert run(config, cache, first).saes == {name: first / name / "sae"}
        run(config, cache, again)
        assert run_bytes(first) == run_bytes(again)
        rewind(again, name, to_step=3)
        assert run(config, cache, again).reused is False
        assert run_bytes(first) == run_bytes(again)

    def test_another_seed_gives_another_sae(
        self, cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
    ) -> None:
        config = make_config(self.settings, {**self.settings, "seed": 1}, steps=3)
        saes = [load_sae(folder) for folder in run(config, cache, tmp_path / "run").saes.values()]
        assert not torch.equal(saes[0].W_dec, saes[1].W_dec)

    def test_training_lowers_the_heldout_error(
        self, cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
    ) -> None:
        config = make_config(self.settings, steps=60, log={"every_steps": 30, "heldout_every_steps": 30})
        run(config, cache, tmp_path / "run")
        lines = metrics(tmp_path / "run")
        assert [line["step"] for line in lines] == [30, 60]
        assert lines[1]["fvu"] < min(1.0, lines[0]["fvu"])  # dense codes start above 1
        assert lines[1]["heldout_fvu"] < self.heldout_fvu_below

    def test_more_active_latents_than_there_are_is_refused(
        self, cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
    ) -> None:
        if "k" not in type(self.variant).model_fields:
            pytest.skip("this kind has no k")
        config = make_config({**self.settings, "k": 96})
        with pytest.raises(UsageError, match="k=96 must be smaller than the number of latents, 96"):
            run(config, cache, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@cache
def _shared_cache(folder: Path) -> ActivationCache:
    return write_sparse_cache(folder / "variant-contract-cache")


@cache
def _shared_cache_of_two_hooks(folder: Path) -> ActivationCache:
    return write_cache_of_two_hooks(folder / "variant-contract-two-hooks")


class WithoutRuns:
    """Leaves out the training runs of the contract class that is inherited after it.

    For further settings of a kind, when another test class already does whole runs.
    """

    test_same_seed_same_bytes_and_resume_is_exact = None
    test_another_seed_gives_another_sae = None
    test_training_lowers_the_heldout_error = None
    test_more_active_latents_than_there_are_is_refused = None
