from typing import ClassVar

import pytest
import torch

from saecache.train.backends.choice import backend_of, load_backend
from saecache.train.backends.compiled.pair_order import by_latent
from saecache.train.backends.plain import products as plain
from saecache.train.backends.protocol import AdamSettings

from ..backend_contract import BackendContract


class TestCompiled(BackendContract):
    name: ClassVar[str] = "compiled"

    def test_same_bits_on_any_number_of_threads(self, pairs, normal, threads):
        g, W_dec = normal(pairs.num_rows, 20), normal(90, 20)
        seen = []
        for num_threads in (1, 2, 3):
            threads(num_threads)
            out = torch.zeros(90, 20)
            self.backend.accumulate_by_latent(pairs, pairs.value, g, out)
            seen.append((self.backend.decode(pairs, W_dec), self.backend.sddmm(pairs, g, W_dec), out))
        for other in seen[1:]:
            assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))

    def test_same_optimizer_step_on_any_number_of_threads(self, normal, threads):
        weights, gradient = normal(300, 20), normal(300, 20)
        settings = AdamSettings(learning_rate=0.1, betas=(0.9, 0.999), eps=1e-8)
        seen = []
        for num_threads in (1, 3):
            threads(num_threads)
            seen.append(
                (
                    *self.run(weights, [gradient], settings, unit_rows=True),
                    self.backend.gradient_norm(gradient),
                )
            )
        assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_serves_float32_in_main_memory(normal):
    assert backend_of(normal(3, 4)) is load_backend("compiled")


@pytest.mark.parametrize("by_latent", [by_latent, plain.by_latent])
def test_by_latent(by_latent, pairs):
    order = by_latent(pairs)
    assert torch.equal(order.latent_ptr.diff(), pairs.count_per_latent())
    assert torch.equal(order.pair, pairs.latent.argsort(stable=True))
    assert torch.equal(order.row, pairs.rows()[order.pair])
