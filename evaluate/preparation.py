"""What an evaluation measures, on what and how: everything is checked here, before the work starts."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..common.devices import choose_device
from ..common.errors import SaecacheError, UsageError
from ..distributed import world
from ..store import ActivationCache
from ..train.foreign.building import imported_from
from ..train.runs.calibration import first_row_of_calibration
from ..train.sae_config import SAEConfig
from ..train.sae_hooks import decoded_hooks, encoded_hooks
from .config import EvaluateConfig
from .language_model import SplicedModel, check_model
from .latents.contexts import DecodeToken
from .latents.folder import check_latents_output
from .latents.logits import Unembedding
from .latents.rows import find_latent_rows
from .measure import LatentView
from .probing.labelled import LabelledTexts, load_labelled
from .probing.letters import LetterWords, make_letter_words
from .probing.texts import TextReader
from .rows import MeasuredRows, RowGroups, choose_rows, group_rows, warn_of_few_rows
from .sequences import ScoredSequences, choose_sequences
from .splicing import find_models
from .synthetic import GroundTruth, has_known_features, remake_ground_truth
from .targets import Target


@dataclass(frozen=True, kw_only=True)
class Models:
    """The language models that an evaluation may run, as far as there are any.

    Attributes:
        spliced: the model of the cache; without it CE and KL are not measured.
        beside: those of the caches beside it, by the caches' names, for the hooks that are theirs.
        reader: the model with its tokenizer, for probing and absorption, which read other texts.
        unembedding: the model's last weights, for the tokens that latents promote and suppress.
        decode_token: turns a token id into text for the contexts; without it they show numbers.
    """

    spliced: SplicedModel | None = None
    beside: Mapping[str, SplicedModel]
    reader: TextReader | None = None
    unembedding: Unembedding | None = None
    decode_token: DecodeToken | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """SAEs, the rows that they are measured on, and what is to be measured.

    Attributes:
        configs: of the SAEs, by name.
        sequences: those that the ``models`` read, each at its hooks; None if none is run.
        view: how latents are shown; None if they are not.
        labelled: the labelled texts that ``reader`` reads; empty without probing.
        words: those of absorption; None without it.
        truth: the features of a synthetic cache; None of another cache.
        warnings: what a reader of the results must know.
    """

    config: EvaluateConfig
    cache: ActivationCache
    targets: list[Target]
    configs: Mapping[str, SAEConfig]
    rows: MeasuredRows
    groups: RowGroups
    device: torch.device
    out: Path
    models: list[tuple[SplicedModel, list[str]]]
    sequences: ScoredSequences | None
    view: LatentView | None
    reader: TextReader | None
    labelled: list[LabelledTexts]
    words: LetterWords | None
    truth: GroundTruth | None
    warnings: list[str]
    show_progress: bool


def prepare_evaluation(
    targets: list[Target],
    cache: ActivationCache,
    config: EvaluateConfig,
    models: Models,
    out: Path,
    notes: Sequence[str],
    *,
    show_progress: bool,
) -> Evaluation:
    """Choose rows, texts and device, and print the warnings.

    Raises:
        UsageError: a model that is not the cache's, texts that cannot be read, no such device.
    """
    configs = {target.name: target.load().cfg for target in targets}
    rows, warnings = choose_rows(cache, min(config.max_rows, _rows_before_calibration(cache, configs)))
    has_tokens = cache.manifest.tokens == "ids and documents"
    if not has_tokens:
        warnings.append("The cache holds no token ids: contexts, CE and KL were not measured.")
    elif without := [name for name in cache.beside if name not in models.beside]:
        warnings.append(
            f"CE and KL were not measured at hooks of {', '.join(without)}: their models were not run."
        )
    warnings += notes
    groups = group_rows(cache, rows)
    warnings += warn_of_few_rows(rows, groups, configs) + _warn_of_other_cache(cache, configs)
    truth = None
    if has_known_features(cache):
        try:
            truth = remake_ground_truth(cache)
        except SaecacheError as error:  # the other figures do not need them
            warnings.append(f"How many known features were recovered was not measured: {error}")
    if show_progress:
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
    device = choose_device(config.device, float64=True, local_rank=world().number_of_gpu)
    labelled, words = _choose_texts(models.reader, configs, cache, config)
    found, sequences = find_models(cache, models.spliced, models.beside) if has_tokens else [], None
    if found:
        sequences = choose_sequences(cache, rows.split, rows.count, config.ce_tokens, config.seed)
        decoded = dict.fromkeys(part.hook for cfg in configs.values() for part in decoded_hooks(cfg))
        for model, own in found:
            check_model(model, cache, [hook for hook in decoded if hook in own], sequences, rows.split)
    view = None
    if has_tokens and config.shows_latents:
        if config.all_latents:
            check_latents_output(out, configs)
        view = LatentView(
            rows=find_latent_rows(cache, rows, config.training_rows, config.seed),
            folder=out.absolute().parent,
            decode_token=models.decode_token or "⟨{}⟩".format,
            unembedding=models.unembedding,
        )
    return Evaluation(
        config=config,
        cache=cache,
        targets=targets,
        configs=configs,
        rows=rows,
        groups=groups,
        device=device,
        out=out,
        models=found,
        sequences=sequences,
        view=view,
        reader=models.reader,
        labelled=labelled,
        words=words,
        truth=truth,
        warnings=warnings,
        show_progress=show_progress,
    )


def _rows_before_calibration(cache: ActivationCache, configs: Mapping[str, SAEConfig]) -> int:
    """The number of held-out rows before those that the threshold of any of the SAEs was set on."""
    own = [cfg for cfg in configs.values() if cfg.cache.get("fingerprint") == cache.fingerprint]
    starts = [first for cfg in own if (first := first_row_of_calibration(cfg)) is not None]
    return min([*starts, max(cache.num_rows("heldout"), len(cache))])


def _warn_of_other_cache(cache: ActivationCache, configs: Mapping[str, SAEConfig]) -> list[str]:
    foreign = {name: cfg for name, cfg in configs.items() if imported_from(cfg) is not None}
    others = [
        name
        for name, cfg in configs.items()
        if name not in foreign and cfg.cache.get("fingerprint") != cache.fingerprint
    ]
    warnings = [
        f"{name}: loaded from {imported_from(cfg)}. Its model is {cfg.cache.get('model_name') or 'not named'}"
        ", and must be the cache's; the measured documents may have been among its training text."
        for name, cfg in foreign.items()
    ]
    if others:
        warnings.append(
            f"{', '.join(others)}: trained from another cache of the same model. Its training text is not "
            "known here: if it is the text of this cache too, then the measured documents are unseen only if "
            "both caches have the same seed and heldout_fraction."
        )
    return warnings


def _choose_texts(
    reader: TextReader | None,
    configs: Mapping[str, SAEConfig],
    cache: ActivationCache,
    config: EvaluateConfig,
) -> tuple[list[LabelledTexts], LetterWords | None]:
    """The labelled texts of probing, and the words of absorption.

    Raises:
        UsageError: nothing reads them, the model is too short for them, or an SAE cannot be measured on them.
    """
    labelled = [load_labelled(source, config.probing, config.seed) for source in config.probing.data]
    if not labelled and not config.absorption:
        return [], None
    if reader is None:
        raise UsageError(
            "probing and absorption read texts with the language model and its tokenizer, and there is none: "
            "leave out --no-model, or give run() a reader"
        )
    _check_texts(configs, cache, absorption=config.absorption)
    if labelled and reader.max_positions is not None and config.probing.context > reader.max_positions:
        raise UsageError(
            f"probing.context={config.probing.context} is longer than the {reader.max_positions} "
            "positions of the model; lower it"
        )
    return labelled, make_letter_words(reader, config.seed) if config.absorption else None


def _check_texts(configs: Mapping[str, SAEConfig], cache: ActivationCache, *, absorption: bool) -> None:
    """Refuse SAEs that cannot be measured on texts, which one language model reads.

    Raises:
        UsageError: an SAE encodes rows of another model, or absorption is to be measured of one whose decoder
            is not in the space of the one hook that it encodes.
    """
    for name, cfg in configs.items():
        if others := [part.hook for part in encoded_hooks(cfg) if part.hook not in cache.manifest.hooks]:
            raise UsageError(
                f"{name} encodes {', '.join(others)} too, which the model that reads the texts lacks: "
                "measure it without probing and absorption"
            )
        if absorption and cfg.shape != "autoencoder":
            to = "several hooks" if cfg.target is None else cfg.target.hook
            raise UsageError(
                f"{name} is a {cfg.shape}: absorption compares decoder rows with a probe of one hook that is "
                f"encoded, and its decoder writes to {to}; measure it without --absorption"
            )
