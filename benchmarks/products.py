"""From which share of active latents on matrix products beat products by pairs (see train/products.py).

    python benchmarks/products.py [--quick] [--rows B] [--threads N]

Prints, for each share, the time of a step's four products both ways and the ratio: above 1 matrices win.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from saecache.train.pairs import Pairs
from saecache.train.variants.base import products


def seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return median(times)


def four_products(codes: Pairs, W_dec: torch.Tensor, g: torch.Tensor, out: torch.Tensor) -> None:
    products.decode(codes, W_dec)
    coefficient = products.sddmm(codes, g, W_dec)
    for values in (codes.value, coefficient):
        products.accumulate_by_latent(codes, values, g, out)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, in seconds")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    latents, width = (4096, 256) if arguments.quick else (24576, 768)
    rows = arguments.rows
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(latents, width, generator=generator)
    g, out = torch.randn(rows, width, generator=generator), torch.zeros(latents, width)
    print(f"F = {latents}, D = {width}, {rows} rows, {arguments.threads} threads")
    for share in (0.9, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.06):
        active = torch.rand(rows, latents, generator=generator) < share
        codes = Pairs.from_dense(torch.randn(rows, latents, generator=generator) * active)
        took = {}
        for name, dense_share in (("pairs", 2.0), ("matrices", -1.0)):
            products.DENSE_SHARE = dense_share
            took[name] = seconds(lambda codes=codes: four_products(codes, W_dec, g, out), 3)
        pairs, matrices = took["pairs"], took["matrices"]
        print(
            f"share {share:.3f}: pairs {pairs:.3f} s, matrices {matrices:.3f} s, ratio {pairs / matrices:.2f}"
        )


if __name__ == "__main__":
    main()
