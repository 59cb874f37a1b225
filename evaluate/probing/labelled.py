"""Labelled texts for probing, from a JSONL or CSV file or from a data set of SAEBench on the hub."""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import UsageError
from ...common.validation import MAX_PROBLEMS, MAX_SHOWN
from ...store.untrusted_files import MAX_LINE_BYTES, open_file, parse_object
from .config import ProbingConfig

MIN_TEXTS = 25  # of a class: with fewer, an accuracy says nothing
TEST_SHARE = 0.2  # of a file's texts, which has no split of its own
_MAX_COLUMNS = 1000  # of a CSV file
_SUFFIXES = (".jsonl", ".ndjson", ".csv")


@dataclass(frozen=True)
class LabelledTexts:
    """Distinct texts by class, apart for training and testing a probe. Every class has both."""

    name: str
    train: dict[str, list[str]]
    test: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """A data set of SAEBench: its columns, the classes that are used, and the column to balance each class
    by.
    """

    dataset: str
    text: str
    label: str
    classes: tuple[str, ...]
    balance: str | None = None


_BIOS = {"dataset": "LabHC/bias_in_bios", "text": "hard_text", "label": "profession", "balance": "gender"}
_AMAZON = "canrager/amazon_reviews_mcauley_1and5"
HUB_SETS = {
    "LabHC/bias_in_bios_class_set1": HubSet(**_BIOS, classes=("0", "1", "2", "6", "9")),
    "LabHC/bias_in_bios_class_set2": HubSet(**_BIOS, classes=("11", "13", "14", "18", "19")),
    "LabHC/bias_in_bios_class_set3": HubSet(**_BIOS, classes=("20", "21", "22", "25", "26")),
    _AMAZON: HubSet(
        dataset=_AMAZON, text="text", label="category", classes=("1", "2", "3", "5", "6"), balance="rating"
    ),
    f"{_AMAZON}_sentiment": HubSet(dataset=_AMAZON, text="text", label="rating", classes=("1.0", "5.0")),
    "fancyzhx/ag_news": HubSet(
        dataset="fancyzhx/ag_news", text="text", label="label", classes=("0", "1", "2", "3")
    ),
}
"""SAEBench's names. Its ``codeparrot/github-code`` and ``Helsinki-NLP/europarl`` need code of their own to
pick texts; write those as JSONL."""


def load_labelled(source: str, config: ProbingConfig, seed: int) -> LabelledTexts:
    """Read the labelled texts ``source``, and draw as many of each class as ``config`` asks for.

    A text that occurs twice is used once, so that no test text is among the training texts.

    Raises:
        UsageError: no such file or data set, a record without text or label, fewer than two classes, or fewer
            than :data:`MIN_TEXTS` texts of a class.
    """
    wanted = config.train_texts // 2, config.test_texts // 2
    random = np.random.default_rng(seed)
    if source in HUB_SETS:
        train, test = (_load_hub_split(source, split, random) for split in ("train", "test"))
        seen = {text for texts in train.values() for text in texts}
        test = {label: [text for text in texts if text not in seen] for label, texts in test.items()}
    elif source.endswith(_SUFFIXES):
        train, test = _split_classes(_distinct(_read_file(Path(source), config)), random)
    else:
        raise UsageError(
            f"probing.data: {source!r} is neither a file that ends in {', '.join(_SUFFIXES)} nor one of the "
            f"data sets {', '.join(HUB_SETS)}"
        )
    _check_classes(source, train, test)
    return LabelledTexts(
        name=source,
        train={label: texts[: wanted[0]] for label, texts in train.items()},
        test={label: texts[: wanted[1]] for label, texts in test.items()},
    )


def _check_classes(source: str, train: dict[str, list[str]], test: dict[str, list[str]]) -> None:
    counts = Counter({label: len(train[label]) + len(test.get(label, ())) for label in train})
    if len(counts) < 2:
        raise UsageError(f"{source}: a probe needs at least 2 classes, got {_shown(counts) or 'none'}")
    few = [f"{label[:MAX_SHOWN]} ({count})" for label, count in counts.items() if count < MIN_TEXTS]
    if few or not all(test.get(label) and train[label] for label in counts):
        raise UsageError(
            f"{source}: every class needs at least {MIN_TEXTS} different texts, for training and for "
            f"testing; too few of {_shown(few) or 'the test split'}. Leave these classes out, or add "
            "texts."
        )


def _shown(names: Iterable[str]) -> str:
    """As many of ``names``, and as much of each, as a message can show."""
    first = [name[: MAX_SHOWN + 20] for name in islice(names, MAX_PROBLEMS + 1)]
    return ", ".join([*first[:MAX_PROBLEMS], *["..."] * (len(first) > MAX_PROBLEMS)])


def _distinct(records: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Texts by class, in order of appearance; the first record of a text counts."""
    by_label: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for label, text in records:
        if text.strip() and text not in seen:
            seen.add(text)
            by_label[label].append(text)
    return dict(by_label)


def _split_classes(
    by_label: dict[str, list[str]], random: np.random.Generator
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    train, test = {}, {}
    for label in sorted(by_label):
        texts = [by_label[label][i] for i in random.permutation(len(by_label[label]))]
        cut = max(1, round(len(texts) * TEST_SHARE))
        test[label], train[label] = texts[:cut], texts[cut:]
    return train, test


def _read_file(path: Path, config: ProbingConfig) -> Iterator[tuple[str, str]]:
    try:
        with open_file(path) as file:
            lines = _read_csv(path, file) if path.suffix == ".csv" else _read_jsonl(path, file)
            for place, record in lines:
                yield _field(record, config.label, place), _field(record, config.text, place)
    except FileNotFoundError:
        raise UsageError(f"probing.data: there is no file {path}") from None


def _lines(path: Path, file: Any) -> Iterator[tuple[str, bytes]]:
    """The lines of a file, each with where it is."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise UsageError(f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
        yield f"{path}, line {number}", line


def _read_jsonl(path: Path, file: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, line in _lines(path, file):
        if line.strip():
            try:
                yield place, parse_object(line)
            except ValueError as error:
                raise UsageError(f"{place}: expected a JSON object ({error})") from None


def _read_csv(path: Path, file: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        lines = (line.decode("utf-8") for _, line in _lines(path, file))
        rows = csv.reader((line.removeprefix("\ufeff") for line in lines), strict=True)
        header: list[str] = next(filter(None, rows), [])
        if len(header) > _MAX_COLUMNS:
            raise UsageError(
                f"{path} has {len(header):,} columns, expected at most {_MAX_COLUMNS:,}: leave out those "
                "that are neither the text nor the label"
            )
        for fields in filter(None, rows):
            # A short record has its own fields only: the work is that of the bytes, not of the header.
            yield f"{path}, line {rows.line_num}", dict(zip(header, fields, strict=False))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: not CSV with a header ({error})") from None


def _field(record: Mapping[str, Any], name: str, place: str) -> str:
    value = record.get(name)
    if value is None or isinstance(value, list | dict):
        fields = ", ".join(str(key)[:40] for key in list(record)[:20])
        raise UsageError(
            f"{place}: expected a text or number in the field {name!r}, got {value!r:.60}; fields here: "
            f"{fields}. Name the fields with --set probing.text=... and --set probing.label=..."
        )
    return str(value)


def _load_hub_split(source: str, split: str, random: np.random.Generator) -> dict[str, list[str]]:
    """The texts of the chosen classes of a hub data set, shuffled; as many of each value of ``balance``."""
    chosen = HUB_SETS[source]
    try:
        from datasets import load_dataset

        table = load_dataset(chosen.dataset, split=split)
    except Exception as error:  # noqa: BLE001 - datasets raises errors of many libraries
        raise UsageError(
            f"the data set {chosen.dataset} cannot be loaded from the hub ({str(error)[:200]}). Without "
            "a network, give a JSONL or CSV file of labelled texts instead."
        ) from None
    columns = [chosen.label, chosen.text] + ([chosen.balance] if chosen.balance else [])
    groups: dict[str, dict[Any, list[str]]] = {label: defaultdict(list) for label in chosen.classes}
    seen: set[str] = set()
    for label, text, *value in zip(*(table[name] for name in columns), strict=True):
        if str(label) in groups and text not in seen:
            seen.add(text)
            groups[str(label)][value[0] if value else None].append(text)
    found = {}
    for label, parts in groups.items():
        shuffled = [[part[i] for i in random.permutation(len(part))] for part in parts.values()]
        fewest = min(map(len, shuffled), default=0)
        # Alternating between the values keeps every prefix balanced.
        found[label] = [
            text for texts in zip(*(part[:fewest] for part in shuffled), strict=True) for text in texts
        ]
    return found
