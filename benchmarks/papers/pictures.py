"""The papers' figures, redrawn from our arms: SVG files, and Markdown that shows them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from charts import Series, draw
from claim import ks_of
from verdicts import Figures, show

Drawing = tuple[str, ...] | None  # name, SVG or Markdown, caption, and perhaps a table below it


def pictures(form: str, paper: str, found: Figures, arms: Mapping[str, Any], figures: Path) -> Iterator[str]:
    """The figures of a paper, redrawn from our arms; writes the SVG files."""
    drawings = {
        "Mutual and Feature Choice": (pareto_choice, density, progressive, features_per_token),
        "Probabilistic TopK": (pareto_probabilistic, alive),
        "Sampled-SAE": (spectrum_fvu, spectrum_dense, seeds_agree),
    }
    for drawing in drawings[paper]:
        made = drawing(found, arms)
        if made is None:
            continue
        name, text, caption, *below = made
        if text.startswith("<svg"):
            file = f"{form}-{name}.svg"
            (figures / file).write_text(text, encoding="utf-8")
            yield from (f"![{caption}]({figures.name}/{file})", "", caption, "")
        else:
            yield from (caption, "", text, "")
        for table in below:
            yield from (table, "")


def pareto(found: Figures, names: Sequence[str], figure: str, title: str) -> str | None:
    series = []
    for name in names:
        ks = [k for k in ks_of(found, name) if figure in found[f"{name}_k{k}"]]
        if len(ks) > 1:
            values = [found[f"{name}_k{k}"] for k in ks]
            centre = [mean(v[figure]) for v in values]
            spread = [stdev(v[figure]) for v in values]
            series.append(
                Series(
                    name=name,
                    x=[mean(v["l0"]) for v in values],
                    y=centre,
                    low=[c - s for c, s in zip(centre, spread, strict=True)],
                    high=[c + s for c, s in zip(centre, spread, strict=True)],
                )
            )
    if len(series) < 2:
        return None
    return draw(
        series, title=title, x_label="L0 (active latents per row)", y_label=figure, log_x=True, log_y=True
    )


def pareto_choice(found: Figures, arms: Mapping[str, Any]) -> Drawing:
    names = ("topk", "batch_topk", "mutual", "zipf_after_mutual", "uniform_after_mutual")
    text = pareto(found, names, "fvu", "Reconstruction against sparsity")
    return text and (
        "pareto-choice",
        text,
        "As figure 4: FVU against L0, mean and standard deviation over seeds.",
    )


def pareto_probabilistic(found: Figures, arms: Mapping[str, Any]) -> Drawing:
    names = ("topk", "topk_without_auxk", "probabilistic", "probabilistic_long_warmup")
    text = pareto(found, names, "mse", "Reconstruction against sparsity")
    return text and ("pareto-probabilistic", text, "As figures 2 and 3: MSE against L0.")


def alive(found: Figures, arms: Mapping[str, Any]) -> Drawing:
    names = [
        n
        for n in ("topk", "topk_without_auxk", "probabilistic")
        for n in (f"{n}_k{k}" for k in ks_of(found, n)[:1])
    ]
    series = []
    for name in names:
        curve = sorted((int(step), values) for step, values in arms[name]["curves"]["alive"].items())
        series.append(
            Series(
                name=name,
                x=[step for step, _ in curve],
                y=[mean(values) for _, values in curve],
                low=[min(values) for _, values in curve],
                high=[max(values) for _, values in curve],
            )
        )
    if len(series) < 2:
        return None
    text = draw(series, title="Alive latents over training", x_label="step", y_label="alive latents")
    return "alive", text, "As figure 4: alive latents over training, mean and range over seeds."


def density(found: Figures, arms: Mapping[str, Any]) -> Drawing:
    names = ("topk", "batch_topk", "mutual", "zipf_after_mutual", "uniform_after_mutual")
    series, fits = [], []
    for name in names:
        for k in ks_of(found, name)[:1]:
            arm = f"{name}_k{k}"
            curve = arms[arm]["curves"]["density"]
            if not curve["rank"]:
                continue
            series.append(Series(name=arm, x=curve["rank"], y=curve["density"], marks=False))
            if "zipf_r2" in found[arm]:
                fits.append(
                    f"| {arm} | {show(found[arm]['zipf_alpha'])} | {show(found[arm]['zipf_beta'])} | "
                    f"{show(found[arm]['zipf_r2'])} | {show(found[arm]['zipf_r2_log'])} |"
                )
    if not series:
        return None
    text = draw(
        series, title="Density of latents by rank", x_label="rank", y_label="density", log_x=True, log_y=True
    )
    caption = (
        "As figure 3: density by rank (first seed). The paper reports R² of 0.98 for Zipf's law on TopK "
        "(section 3.2). Alpha, beta and R² are of a fit to densities; the last column is R² of a fit to "
        "their logarithms."
    )
    head = "| arm | alpha | beta | R² | R² of logarithms |\n|---|---|---|---|---|\n"
    return "density", text, caption, head + "\n".join(fits)


def progressive(found: Figures, arms: Mapping[str, Any]) -> Drawing:
    series = []
    for name in ("topk", "batch_topk", "mutual", "uniform_after_mutual"):
        for k in ks_of(found, name)[-1:]:
            steps = arms[f"{name}_k{k}"]["curves"]["progressive"]
            series.append(Series(name=f"{name}_k{k}", x=[s[0] for s in steps], y=[s[2] for s in steps]))
    if len(series) < 2:
        return None
    text = draw(
        series,
        title="Progressive codes",
        x_label="codes kept per row (the largest)",
        y_label="fvu",
        log_x=True,
    )
    return (
        "progressive",
        text,
        "As appendix E: FVU when only the largest codes of each row are kept (first seed).",
    )


def features_per_token(found: Figures, arms: Mapping[str, Any]) -> Drawing:
    series = []
    for name in ("batch_topk", "mutual", "zipf_after_mutual", "uniform_after_mutual"):
        for k in ks_of(found, name)[-1:]:
            histogram = arms[f"{name}_k{k}"]["curves"]["features_per_token"]
            total = sum(histogram["counts"])
            middles = [(a + b) / 2 for a, b in pairwise(histogram["edges"])]
            widths = [b - a for a, b in pairwise(histogram["edges"])]
            shares = [c / total / w for c, w in zip(histogram["counts"], widths, strict=True)]
            series.append(Series(name=f"{name}_k{k}", x=middles, y=shares, marks=False))
    if len(series) < 2:
        return None
    text = draw(
        series, title="Features per token", x_label="active latents of a row", y_label="share of rows"
    )
    return (
        "features-per-token",
        text,
        "As figure 7 (appendix D): how many latents a row has (first seed). The paper's second mode is the "
        "BOS token, which the harvest leaves out.",
    )


def spectrum(found: Figures, figure: str, title: str) -> str | None:
    series = []
    for score in ("squared_l2", "entropy", "uniform"):
        points = sorted(
            (int(name.removeprefix(f"sampled_{score}_l").split("_")[0]), values[figure])
            for name, values in found.items()
            if name.startswith(f"sampled_{score}_l") and figure in values
        )
        if points:
            series.append(
                Series(
                    name=score,
                    x=[pool for pool, _ in points],
                    y=[mean(v) for _, v in points],
                    low=[mean(v) - stdev(v) for _, v in points],
                    high=[mean(v) + stdev(v) for _, v in points],
                )
            )
    if not series:
        return None
    k = next(name for name in found if name.startswith("sampled_")).rpartition("_k")[2]
    base = found.get(f"batch_topk_k{k}", {}).get(figure)
    if base:
        x = [min(v for s in series for v in s.x), max(v for s in series for v in s.x)]
        series.append(Series(name=f"batch_topk_k{k}", x=x, y=[mean(base)] * 2, marks=False))
    return draw(series, title=title, x_label="pool factor ℓ", y_label=figure, log_x=True)


def spectrum_fvu(found: Figures, arms: Mapping[str, Any]) -> Drawing:
    text = spectrum(found, "fvu", "The ℓ spectrum: reconstruction")
    return text and ("spectrum-fvu", text, "FVU along ℓ (the x axis of figures 3 to 6).")


def spectrum_dense(found: Figures, arms: Mapping[str, Any]) -> Drawing:
    text = spectrum(found, "over_10", "The ℓ spectrum: latents active on over 10 % of rows")
    return text and ("spectrum-dense", text, "As figure 4: the share of latents active on over 10 % of rows.")


def seeds_agree(found: Figures, arms: Mapping[str, Any]) -> Drawing:
    names = [n for n in found if n.startswith(("sampled_", "batch_topk")) and "mmcs" in found[n]]
    if not any(n.startswith("sampled_") for n in names):
        return None
    rows = "\n".join(f"| {name} | {show(found[name]['mmcs'])} |" for name in names)
    return "mmcs", f"| arm | MMCS across seeds |\n|---|---|\n{rows}", "As table 1: how much seeds agree."
