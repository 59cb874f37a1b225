"""The contract of every backend: its test inherits ``BackendContract`` and names the folder.

Products are compared with dense float64, optimizer steps with torch.optim.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from saecache.train.backends.choice import load_backend
from saecache.train.backends.gates import Gates
from saecache.train.backends.plain.random_numbers import random_uniform
from saecache.train.backends.protocol import AdamSettings, Backend
from saecache.train.backends.sources import Encoder, Scores
from saecache.train.pairs import Pairs
from saecache.train.selection import reference
from saecache.train.selection.errors import NonFiniteError

CPU = torch.device("cpu")
RULES = ("largest_per_row", "above", "largest_of_batch", "largest_per_latent")


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def assert_same(found: dict[str, Pairs], expected: dict[str, Pairs]) -> None:
    for rule, pairs in found.items():
        for name in ("row_ptr", "latent", "value"):
            assert torch.equal(getattr(pairs, name), getattr(expected[rule], name)), f"{rule}: {name}"


class BackendContract:
    """Tests of one backend. Subclasses are named ``Test...`` so that pytest finds them."""

    name: ClassVar[str]

    @property
    def backend(self) -> Backend:
        return load_backend(self.name)

    # ---- products

    def test_sum_per_latent(self, pairs, normal):
        values = normal(len(pairs))
        dense = pairs.with_value(values).to_dense().double()
        close(self.backend.sum_per_latent(pairs, values), dense.sum(0))

    def test_decode(self, pairs, normal):
        W_dec, bias = normal(90, 20), normal(20)
        expected = pairs.to_dense().double() @ W_dec.double()
        close(self.backend.decode(pairs, W_dec), expected)
        close(self.backend.decode(pairs, W_dec, bias), expected + bias)

    def test_latents_in_two_parts_add_up_to_the_bits_of_all(self, pairs, normal):
        """Processes that share the latents decode one after the other."""
        W_dec, sums = normal(90, 20), torch.zeros(pairs.num_rows, 20)
        for first, stop in ((0, 37), (37, 90)):
            own = pairs.keep((pairs.latent >= first) & (pairs.latent < stop))
            here = replace(own, latent=own.latent - first, num_latents=stop - first)
            self.backend.add_decoded(here, W_dec[first:stop], sums)
        assert torch.equal(sums, self.backend.decode(pairs, W_dec))

    def test_row_squares_are_those_of_the_norm(self, normal):
        gradient, weights = normal(90, 20), normal(90, 20)
        for rows in (None, weights):
            squares = self.backend.row_squares(gradient, rows)
            assert squares.shape == (90,) and squares.dtype == torch.float64
            close(squares.sum().sqrt(), self.backend.gradient_norm(gradient, rows))
            assert torch.equal(squares[30:50], self.backend.row_squares(
                gradient[30:50], None if rows is None else rows[30:50]))  # fmt: skip

    @pytest.mark.parametrize("first", [4, 30, 63])
    def test_latents_from_any_one_on_have_their_random_numbers(self, first):
        every = self.backend.random_uniform(3, 1, 2, 5, 90, "cpu")
        assert torch.equal(
            self.backend.random_uniform(3, 1, 2, 5, 90 - first, "cpu", first), every[:, first:]
        )

    def test_sddmm(self, pairs, normal):
        g, W_dec = normal(pairs.num_rows, 20), normal(90, 20)
        close(
            self.backend.sddmm(pairs, g, W_dec), (g.double() @ W_dec.double().T)[pairs.rows(), pairs.latent]
        )

    def test_accumulate_by_latent(self, pairs, normal):
        coefficient, source, out = normal(len(pairs)), normal(pairs.num_rows, 20), normal(90, 20)
        dense = pairs.with_value(coefficient).to_dense().double()
        expected = out.double() + dense.T @ source.double()
        self.backend.accumulate_by_latent(pairs, coefficient, source, out)
        close(out, expected)

    def test_slices_of_larger_tensors(self, normal):
        """Parts of a batch are views, and parameters may be."""
        pairs = Pairs.from_dense((torch.arange(50 * 90).view(50, 90) % 7 == 0).float()).slice_rows(10, 40)
        g, W_dec = normal(50, 20)[10:40], normal(90, 40)[:, ::2]
        dense = pairs.to_dense().double()
        close(self.backend.decode(pairs, W_dec), dense @ W_dec.double())
        close(
            self.backend.sddmm(pairs, g, W_dec), (g.double() @ W_dec.double().T)[pairs.rows(), pairs.latent]
        )
        out = torch.zeros(90, 40)[:, ::2]
        self.backend.accumulate_by_latent(pairs, pairs.value, g, out)
        close(out, dense.T @ g.double())

    def test_parameters_that_require_gradients(self, pairs, normal):
        W_dec = normal(90, 20).requires_grad_()
        with torch.no_grad():
            close(self.backend.decode(pairs, W_dec), pairs.to_dense().double() @ W_dec.double())

    @pytest.mark.parametrize("width", [1, 20, 64, 100, 768])
    def test_a_product_does_not_depend_on_its_neighbours(self, normal, width):
        """Any subset of pairs has the same pre-activations, bit for bit; selection rules rely on it."""
        g, W = normal(30, width), normal(90, width)
        every = Pairs.from_dense(torch.ones(30, 90))
        products = self.backend.sddmm(every, g, W)
        some = torch.arange(len(every)) * 7919 % 5 == 0
        assert torch.equal(self.backend.sddmm(every.keep(some), g, W), products[some])

    def test_nan_goes_where_it_belongs(self, normal):
        pairs = Pairs.from_dense(torch.eye(4))
        source = normal(4, 3)
        source[2, 1] = torch.nan
        out = torch.zeros(4, 3)
        self.backend.accumulate_by_latent(pairs, pairs.value, source, out)
        assert out.isnan().nonzero().tolist() == [[2, 1]]
        assert self.backend.sddmm(pairs, source, normal(4, 3)).isnan().tolist() == [False, False, True, False]

    def test_reconstruct(self, pairs, normal):
        W_dec, target = normal(90, 20), normal(pairs.num_rows, 20)
        error, d_value, squared_error = self.backend.reconstruct(pairs, W_dec, target, 0.25)
        expected = pairs.to_dense().double() @ W_dec.double() - target.double()
        close(error, expected)
        close(d_value, 0.25 * (expected @ W_dec.double().T)[pairs.rows(), pairs.latent])
        assert squared_error.dtype == torch.float64
        close(squared_error, expected.square().sum())

    def test_weight_gradients(self, pairs, normal):
        """They are added to what is there; the sums are returned."""
        d_pre, x, error = normal(len(pairs)), normal(pairs.num_rows, 20), normal(pairs.num_rows, 20)
        W_enc, W_dec = normal(90, 20), normal(90, 20)
        dense = pairs.with_value(d_pre).to_dense().double()
        wanted = [W_enc.double() + dense.T @ x.double()]
        wanted.append(W_dec.double() + 0.25 * pairs.to_dense().double().T @ error.double())
        sums = self.backend.weight_gradients(pairs, d_pre, x, error, 0.25, W_enc, W_dec)
        close(W_enc, wanted[0])
        close(W_dec, wanted[1])
        close(sums, dense.sum(0))

    def rings(self, G):
        """Codes of 40 rows as G rings each, of 90 latents: (rings, the codes of each set, [G, 40, 90])."""
        dense = torch.rand(40, 90, generator=torch.Generator().manual_seed(6)) * 2 - 1
        dense[dense.abs() > 0.2] = 0
        dense[7] = 0
        latent = torch.arange(90)
        of_ring = torch.stack([dense * (latent * G // 90 == ring) for ring in range(G)], dim=1)
        return Pairs.from_dense(of_ring.flatten(0, 1)), of_ring.cumsum(1).transpose(0, 1).double()

    @pytest.mark.parametrize("G", [1, 2, 5])
    def test_reconstruct_nested(self, normal, G):
        rings, codes = self.rings(G)
        W_dec, target, weights = normal(90, 20), normal(40, 20), [0.5 + ring for ring in range(G)]
        whole, slopes, dots, squared = self.backend.reconstruct_nested(rings, W_dec, target, weights, 0.25)
        errors = codes @ W_dec.double() - target.double()
        weighted = 0.25 * torch.tensor(weights).double()[:, None, None] * errors
        wanted = weighted.flip(0).cumsum(0).flip(0).transpose(0, 1).flatten(0, 1)
        close(whole, errors[-1])
        close(slopes, wanted)
        close(dots, (wanted @ W_dec.double().T)[rings.rows(), rings.latent])
        assert squared.dtype == torch.float64
        close(squared, errors.square().sum((1, 2)))

    def test_reconstruct_nested_of_no_rows(self, normal):
        none = Pairs.from_dense(torch.zeros(0, 90))
        found = self.backend.reconstruct_nested(none, normal(90, 20), normal(0, 20), [1.0, 1.0], 1.0)
        assert [tuple(tensor.shape) for tensor in found] == [(0, 20), (0, 20), (0,), (2,)]
        assert not bool(found[3].any())

    def test_weight_gradients_of_rings(self, normal):
        """The rings of a row share the row that was encoded."""
        rings, _ = self.rings(3)
        d_pre, x, slopes = normal(len(rings)), normal(40, 20), normal(120, 20)
        W_enc, W_dec = normal(90, 20), normal(90, 20)
        d_dense = rings.with_value(d_pre).to_dense().double()
        wanted = [W_enc.double() + d_dense.view(40, 3, 90).sum(1).T @ x.double()]
        wanted.append(W_dec.double() + 0.25 * rings.to_dense().double().T @ slopes.double())
        sums = self.backend.weight_gradients(rings, d_pre, x, slopes, 0.25, W_enc, W_dec)
        close(W_enc, wanted[0])
        close(W_dec, wanted[1])
        close(sums, d_dense.sum(0))

    # ---- whole blocks of pre-activations

    @pytest.mark.parametrize("draw", [None, (2**64 - 1, 3 << 32 | 7, 11, 0), (5, 0, 0, 6)])
    @pytest.mark.parametrize("weight", [0.0, 1e-2])
    @pytest.mark.parametrize("layer_norm", [True, False])
    def test_rank_gates(self, normal, layer_norm, weight, draw):
        """The definition in float64. Of open gates, t > 0, the distance from 1 is what counts."""
        a = normal(7, 90) + 0.3
        before = a.clone()
        gates = Gates(beta=torch.tensor(0.3), magnitude_weight=weight, layer_norm=layer_norm, draw=draw)
        found = self.backend.rank_gates(a, gates)
        t = a.double()
        if layer_norm:
            t = (t - t.mean(1, keepdim=True)) / (t.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        if draw is not None:
            seed, batch, first_row, first_latent = draw
            t = t + random_uniform(seed, batch, first_row, 7, 90, "cpu", first_latent).double().logit()
        t = t / 0.3
        wanted = t if weight == 0 else weight * a.double().abs() - torch.sigmoid(-t)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 if weight == 0 else 1e-6)
        assert torch.equal(a, before), "the block is left alone"

    @pytest.mark.parametrize("rows", [0, 1, 300])
    @pytest.mark.parametrize("positive", [True, False])
    def test_sum_rows(self, normal, positive, rows):
        pre = normal(rows, 90)
        z = pre.double().clamp(min=0) if positive else pre.double()
        close(self.backend.sum_rows(pre, positive=positive, entropy=False), z.square().sum(0)[None])
        if positive:
            wanted = torch.stack([z.sum(0), torch.xlogy(z, z).sum(0)])
            close(self.backend.sum_rows(pre, positive=True, entropy=True), wanted)

    @pytest.mark.parametrize("k", [1, 7, 72])
    def test_given_scores_are_compared_as_they_are(self, k):
        """With ties, infinities of either sign, both zeros, and rows of one number."""
        scores = (torch.randn(23, 72, generator=torch.Generator().manual_seed(3)) * 2).round()
        scores[3], scores[4], scores[5, ::2], scores[6, 9] = 1.0, -torch.inf, -0.0, torch.inf
        source = Scores(lambda: iter([(0, scores[:20].clone()), (20, scores[20:].clone())]), 23, 72, CPU)
        pairs = self.backend.largest_per_row(source, k)
        mask = reference.per_row(scores, k)
        assert torch.equal(pairs.row_ptr, torch.arange(24) * k)
        assert torch.equal(pairs.latent, mask.nonzero()[:, 1])
        assert torch.equal(pairs.value, scores[mask])

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in Triton's interpreter
    def test_a_given_score_that_is_nan_is_named(self):
        scores = torch.zeros(8, 72)
        scores[5, 70] = torch.nan
        source = Scores(lambda: iter([(0, scores[:4]), (4, scores[4:])]), 8, 72, CPU)
        with pytest.raises(NonFiniteError, match="row 5, latent 70"):
            self.backend.largest_per_row(source, 3)

    # ---- counts

    def test_count_active(self, pairs):
        """A pair whose value is 0 is none."""
        some = pairs.with_value(pairs.value.where(torch.arange(len(pairs)) % 3 > 0, 0.0))
        row_l0, firing = self.backend.count_active(some)
        active = some.to_dense() != 0
        assert torch.equal(row_l0, active.sum(1))
        assert torch.equal(firing, active.sum(0))

    # ---- selections

    @pytest.fixture
    def change_product(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
        """``change_product(name)`` for each of :attr:`products` changes the product that screens."""
        before = torch.get_float32_matmul_precision()
        yield torch.set_float32_matmul_precision
        torch.set_float32_matmul_precision(before)

    products: ClassVar[tuple[str, ...]] = ("high", "medium")
    """Products that :meth:`change_product` knows; torch's settings of its float32 products."""
    block_sizes: ClassVar[tuple[int, ...]] = (1, 5, 32)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows, and latents of which many differ in the last bits only: products order them at random."""
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(18, 40, generator=generator)
        W = torch.randn(12, 40, generator=generator).repeat(6, 1)
        W[24:] *= 1 + 2.0**-22 * torch.randn(48, 40, generator=generator)
        return x, W, torch.randn(12, generator=generator).repeat(6)

    def select(self, rows: slice, block_rows: int = 18, rules: tuple[str, ...] = RULES) -> dict[str, Pairs]:
        """What the rules select among the pre-activations of some of the rows of :meth:`factors`."""
        x, W, b = self.factors()
        encoder = Encoder(x[rows], W, b, block_rows)
        select: dict[str, Callable[[], Pairs]] = {
            "largest_per_row": lambda: self.backend.largest_per_row(encoder, 7),
            "above": lambda: self.backend.above(encoder, torch.linspace(-3, 3, 72)),
            "largest_of_batch": lambda: self.backend.largest_of_batch(encoder, 50, None)[0],
            "largest_per_latent": lambda: self.backend.largest_per_latent(encoder, torch.arange(72) % 4),
        }
        return {rule: select[rule]() for rule in rules}

    def test_exact_pre_activations_decide(self):
        x, W, b = self.factors()
        every = Pairs.from_dense(torch.ones(18, 72))
        pre = (self.backend.sddmm(every, x, W) + b[every.latent]).view(18, 72)
        wanted = {
            "largest_per_row": reference.per_row(pre, 7),
            "above": reference.threshold(pre, torch.linspace(-3, 3, 72)),
            "largest_of_batch": reference.per_batch(pre, 50),
            "largest_per_latent": reference.per_latent(pre, torch.arange(72) % 4),
        }
        for rule, pairs in self.select(slice(None)).items():
            expected = Pairs.from_dense(wanted[rule].float())
            assert torch.equal(pairs.row_ptr, expected.row_ptr), rule
            assert torch.equal(pairs.latent, expected.latent), rule
            assert torch.equal(pairs.value, pre[wanted[rule]]), rule

    def test_neither_the_block_size_nor_the_product_changes_a_selection(self, change_product):
        expected = self.select(slice(None))
        for block_rows in self.block_sizes:
            assert_same(self.select(slice(None), block_rows), expected)
        for product in self.products:
            change_product(product)
            assert_same(self.select(slice(None)), expected)
            assert_same(self.select(slice(None), 1), expected)

    def test_a_row_alone_selects_as_in_the_batch(self):
        rules = ("largest_per_row", "above")
        together = self.select(slice(None), rules=rules)
        for row in (0, 6, 17):
            part = {rule: pairs.slice_rows(row, row + 1) for rule, pairs in together.items()}
            assert_same(self.select(slice(row, row + 1), rules=rules), part)

    # ---- random numbers

    @pytest.mark.parametrize("latents", [1, 6, 1030])
    def test_random_numbers_are_those_of_every_backend(self, latents):
        for seed, batch in ((0, 0), (2**64 - 1, 2**40 + 3)):
            numbers = self.backend.random_uniform(seed, batch, 5, 3, latents, "cpu")
            assert numbers.shape == (3, latents) and numbers.dtype == torch.float32
            assert torch.equal(numbers, random_uniform(seed, batch, 5, 3, latents, "cpu"))

    # ---- optimizer

    def test_norm_of_all_gradients_together(self, normal):
        W, gradient, bias = torch.nn.functional.normalize(normal(90, 20)), normal(90, 20), normal(20)
        tangential = gradient - (gradient * W).sum(1, keepdim=True) * W
        flat = torch.cat([gradient.flatten(), tangential.flatten(), bias]).double()
        norm = self.backend.global_norm([(gradient, None), (gradient, W), (bias, None)])
        torch.testing.assert_close(norm, flat.norm(), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in Triton's interpreter
    def test_clipping_stops_for_good_at_a_figure_that_is_not_finite(self, bad):
        unsound = torch.zeros((), dtype=torch.float64)
        good = torch.tensor([3.0, 4.0], dtype=torch.float64)
        assert float(self.backend.clip(good, 1.0, unsound)) == pytest.approx(0.25, rel=1e-6)
        assert float(self.backend.clip(good, 8.0, unsound)) == 1.0
        assert float(self.backend.clip(good, None, unsound)) == 1.0
        assert self.backend.clip(torch.tensor([bad, 4.0], dtype=torch.float64), 1.0, unsound).isnan()
        assert self.backend.clip(good, 1.0, unsound).isnan()

    @pytest.mark.parametrize("unit_rows", [False, True])
    def test_a_scale_on_the_device_is_used_and_nan_changes_nothing(self, normal, unit_rows):
        weights, gradient = torch.nn.functional.normalize(normal(90, 20)), normal(90, 20)
        mean, square = normal(90, 20), normal(90, 20).square()
        numbers = {"learning_rate": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}

        def step(scale):
            changed = [t.clone() for t in (weights, mean, square)]
            settings = AdamSettings(**numbers, gradient_scale=scale, decoupled=True)
            self.backend.adam_step(changed[0], gradient, *changed[1:], 3, settings, unit_rows=unit_rows)
            return changed

        on_device = torch.tensor(0.5, dtype=torch.float64)
        assert all(torch.equal(a, b) for a, b in zip(step(on_device), step(0.5), strict=True))
        unchanged = step(torch.full_like(on_device, torch.nan))
        assert all(torch.equal(a, b) for a, b in zip(unchanged, (weights, mean, square), strict=True))

    def run(self, weights, gradients, settings, *, unit_rows=False):
        weights = weights.clone()
        mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
        for step, gradient in enumerate(gradients, 1):
            self.backend.adam_step(weights, gradient, mean, square, step, settings, unit_rows=unit_rows)
        return weights, mean, square

    @pytest.mark.parametrize("shape", [(90, 20), (20,), (3, 1)])
    @pytest.mark.parametrize("decoupled", [False, True])
    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    def test_is_torch_adam(self, normal, shape, decoupled, weight_decay):
        weights, gradients = normal(*shape), [normal(*shape) for _ in range(5)]
        settings = AdamSettings(
            learning_rate=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay, decoupled=decoupled
        )
        expected = weights.clone().double().requires_grad_()
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        optimizer = kind([expected], lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay)
        for gradient in gradients:
            expected.grad = gradient.double()
            optimizer.step()
        updated, mean, square = self.run(weights, gradients, settings)
        state = optimizer.state[expected]
        torch.testing.assert_close(updated.double(), expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mean.double(), state["exp_avg"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(square.double(), state["exp_avg_sq"], rtol=1e-5, atol=1e-6)

    def test_unit_rows_is_tangential_gradient_then_adam_then_normalization(self, normal):
        weights = torch.nn.functional.normalize(normal(90, 20))
        gradients = [normal(90, 20) for _ in range(4)]
        settings = AdamSettings(learning_rate=0.05, betas=(0.9, 0.999), eps=1e-8, gradient_scale=0.3)
        expected = weights.clone().double().requires_grad_()
        optimizer = torch.optim.Adam([expected], lr=0.05)
        for gradient in gradients:
            with torch.no_grad():
                g = gradient.double()
                expected.grad = 0.3 * (g - (g * expected).sum(1, keepdim=True) * expected)
                optimizer.step()
                expected /= expected.norm(dim=1, keepdim=True)
        updated, _, _ = self.run(weights, gradients, settings, unit_rows=True)
        torch.testing.assert_close(updated.double(), expected.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(updated.norm(dim=1), torch.ones(90))

    def test_a_row_of_zeros_stays_finite(self):
        weights, gradient = torch.zeros(3, 4), torch.zeros(3, 4)
        settings = AdamSettings(learning_rate=0.1, betas=(0.9, 0.999), eps=1e-8)
        assert torch.equal(self.run(weights, [gradient], settings, unit_rows=True)[0], weights)

    def test_gradient_norm(self, normal):
        gradient, weights = normal(90, 20), normal(90, 20)
        along = (gradient * weights).sum(1, keepdim=True) / weights.square().sum(1, keepdim=True)
        tangential = gradient.double() - along.double() * weights
        torch.testing.assert_close(self.backend.gradient_norm(gradient), gradient.double().norm())
        torch.testing.assert_close(self.backend.gradient_norm(gradient[0]), gradient[0].double().norm())
        torch.testing.assert_close(
            self.backend.gradient_norm(gradient, unit_rows_of=weights), tangential.norm(), rtol=1e-6, atol=0
        )

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_gradient_norm_shows_what_is_not_finite(self, normal, bad):
        gradient = normal(90, 20)
        gradient[80, 19] = bad
        assert not self.backend.gradient_norm(gradient).isfinite()
        assert not self.backend.gradient_norm(gradient, unit_rows_of=normal(90, 20)).isfinite()
