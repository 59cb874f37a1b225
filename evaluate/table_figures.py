"""The figures of an SAE that tables show: the terminal's, the report's and the model card's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .results import SaeResult


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A figure of one SAE, with its 95 % interval and its standard error; None for what was not measured."""

    value: float | None
    interval: tuple[float, float] | None = None
    error: float | None = None

    @property
    def between(self) -> str:
        """The interval in words, empty if there is none."""
        return "" if self.interval is None else f"{self.interval[0]:.4g} to {self.interval[1]:.4g}"


@dataclass(frozen=True)
class TableFigure:
    """A figure, as tables show it.

    Attributes:
        label: its name.
        form: how Python formats its value.
        read: reads it from the results of an SAE.
        help: what it is, in a few words; ``definitions.py`` has the whole definition.
        short: its name in the terminal, where ``label`` is too wide.
        higher_is_better: the first click on its column in the report sorts the highest value to the top.
        optional: tables leave it out if none of their SAEs has it.
        in_terminal: whether the terminal, which has little room, shows it.
    """

    label: str
    form: str
    read: Callable[[SaeResult], Measured]
    help: str
    short: str = ""
    higher_is_better: bool = False
    optional: bool = False
    in_terminal: bool = True

    def show(self, value: float | None, missing: str = "–") -> str:
        """The value as text, ``missing`` if it was not measured."""
        return missing if value is None else format(value, self.form).replace("%", " %")


def choose_figures(saes: Sequence[SaeResult]) -> list[TableFigure]:
    """The figures that a table of ``saes`` shows, in its order."""
    return [
        figure
        for figure in TABLE_FIGURES
        if not figure.optional or any(figure.read(sae).value is not None for sae in saes)
    ]


def _at(path: str) -> Callable[[SaeResult], Measured]:
    """Make a function that reads the value at ``path`` in the results, and what stands beside it there."""
    *parts, name = path.split(".")

    def read(sae: SaeResult) -> Measured:
        part: Any = sae
        for step in parts:
            part = getattr(part, step)
            if part is None:
                return Measured(value=None)
        return Measured(
            value=getattr(part, name),
            interval=getattr(part, "intervals", {}).get(name) or getattr(part, "interval", None),
            error=getattr(part, f"{name}_standard_error", None),
        )

    return read


def _probing(k: str | None) -> Callable[[SaeResult], Measured]:
    """Make a function that reads the accuracy of probes that see ``k`` latents, or all (None)."""
    return lambda sae: Measured(value=sae.probe_accuracy(k))


TABLE_FIGURES = (
    TableFigure("latents", ",d", _at("num_latents"), "number of latents"),
    TableFigure("L0", ".1f", _at("codes.l0"), "mean number of active latents per token"),
    TableFigure("FVU", ".4f", _at("normalized.fvu"), "fraction of variance unexplained, normalized rows"),
    TableFigure("FVU raw", ".4f", _at("raw.fvu"),
                "fraction of variance unexplained, raw activations", in_terminal=False),
    TableFigure("MSE", ".3g", _at("normalized.mse"), "mean squared error per coordinate, normalized rows"),
    TableFigure("cosine", ".4f", _at("normalized.cosine"),
                "mean cosine between row and reconstruction", higher_is_better=True),
    TableFigure("alive", ".1%", _at("codes.alive_share"),
                "share of latents that fire on the measured rows", higher_is_better=True),
    TableFigure("dead", ",d", _at("codes.dead"), "latents that never fire on the measured rows"),
    TableFigure("dying", ",d", _at("codes.dying"),
                "alive latents that are far below Zipf's law at the end of the ranks", optional=True),
    TableFigure(">10 %", ".2%", _at("codes.dense_share"),
                "share of latents that fire on more than 10 % of rows"),
    TableFigure("Zipf R²", ".4f", _at("zipf.log.r2"), "R² of Zipf's law, fitted to log densities",
                higher_is_better=True, optional=True, in_terminal=False),
    TableFigure("nearest", ".3f", _at("collapse.nearest_cosine"),
                "mean cosine of a decoder direction with its nearest other", optional=True),
    TableFigure("CE recovered", ".4f", _at("language_model.ce_recovered"),
                "share of the cross-entropy lost by zero ablation that is recovered",
                short="CE rec.", higher_is_better=True),
    TableFigure("KL score", ".4f", _at("language_model.kl_score"),
                "1 - KL with the SAE / KL with zero ablation", higher_is_better=True),
    TableFigure("top-1", ".4f", _at("language_model.top1_sae"),
                "share of tokens with the clean model's most likely next token", higher_is_better=True),
    TableFigure("probe k=1", ".4f", _probing("1"), "accuracy of probes of labelled texts that see one latent",
                higher_is_better=True, optional=True),
    TableFigure("k=5", ".4f", _probing("5"), "accuracy of probes of labelled texts that see five latents",
                higher_is_better=True, optional=True),
    TableFigure("all", ".4f", _probing(None), "accuracy of probes of labelled texts that see all latents",
                higher_is_better=True, optional=True),
    TableFigure("absorbed", ".4f", _at("absorption.absorption_fraction"),
                "share of first letters that other latents have absorbed", optional=True),
    TableFigure("detection", ".3f", _at("interpretation.detection.mean"),
                "how well a judge finds active windows by the explanations; 0.5 is chance",
                higher_is_better=True, optional=True),
    TableFigure("fuzzing", ".3f", _at("interpretation.fuzzing.mean"),
                "how well a judge tells right highlights by the explanations; 0.5 is chance",
                higher_is_better=True, optional=True),
)  # fmt: skip
