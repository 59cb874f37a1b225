"""From which share of active latents on matrix products beat products by pairs (see train/products.py).

    python benchmarks/products.py [--quick] [--rows B] [--threads N]

For each share of active latents: the time of a step's four products by pairs over that by matrices. Above 1,
matrices win.
"""

import torch
from shared.measuring import Cost, Report, parser, ratios, seconds_of, take_turns, timed

from saecache.train.pairs import Pairs
from saecache.train.variants.base import products


def four_products(codes: Pairs, W_dec: torch.Tensor, g: torch.Tensor, out: torch.Tensor) -> None:
    error, coefficient, _ = products.reconstruct(codes, W_dec, g, 1.0)
    products.weight_gradients(codes, coefficient, g, error, 1.0, out, out)


@torch.no_grad()
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=128)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    settings = options.parse_args()
    torch.set_num_threads(settings.threads)
    latents, width = (4096, 256) if settings.quick else (24576, 768)
    rows = settings.rows
    size = f"F = {latents:,}, D = {width}, {rows} rows, {settings.threads} threads"
    report = Report("products", settings, size)
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(latents, width, generator=generator)
    g, out = torch.randn(rows, width, generator=generator), torch.zeros(latents, width)
    for share in (0.9, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.06):
        active = torch.rand(rows, latents, generator=generator) < share
        codes = Pairs.from_dense(torch.randn(rows, latents, generator=generator) * active)

        def products_with(dense_share: float, codes: Pairs = codes) -> Cost:
            products.DENSE_SHARE = dense_share
            return timed(lambda: four_products(codes, W_dec, g, out))

        ways = {"pairs": lambda: products_with(2.0), "matrices": lambda: products_with(-1.0)}
        seconds = seconds_of(take_turns(ways, settings.rounds))
        slower = ratios(seconds["pairs"], seconds["matrices"])
        report.add(f"{share:.0%} of the latents active", slower, group="time by pairs / time by matrices")
    report.save()


if __name__ == "__main__":
    main()
