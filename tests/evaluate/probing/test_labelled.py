"""Labelled texts from files and from a pretended hub: classes, splits, balance, and what is refused."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from saecache.common.errors import UsageError
from saecache.evaluate.probing.config import ProbingConfig
from saecache.evaluate.probing.labelled import HUB_SETS, MIN_TEXTS, load_labelled

from ...hostile import right_or_refused

CONFIG = ProbingConfig()


def records(per_class: int = 50, classes: tuple[object, ...] = ("a", "b")) -> list[dict[str, object]]:
    return [{"text": f"text {i} of {c}", "label": c} for c in classes for i in range(per_class)]


def write_jsonl(path: Path, rows: list[dict[str, object]], end: str = "\n") -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + end)
    return str(path)


def test_jsonl_and_csv_hold_the_same(tmp_path: Path) -> None:
    rows = records(classes=(0, 1, 2))
    rows[0]["text"] = 'with "quotes", commas,\nand a line end'
    jsonl = write_jsonl(tmp_path / "t.jsonl", rows, end="")  # the last line counts without its end too
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["label", "text"])
        writer.writeheader()
        writer.writerows(rows)
    a, b = load_labelled(jsonl, CONFIG, 0), load_labelled(str(tmp_path / "t.csv"), CONFIG, 0)
    assert a.train == b.train
    assert a.test == b.test
    assert list(a.train) == ["0", "1", "2"]
    assert {len(texts) for texts in a.train.values()} == {40}
    assert {len(texts) for texts in a.test.values()} == {10}
    assert {text for part in (a.train, a.test) for texts in part.values() for text in texts} == {
        row["text"] for row in rows
    }


def test_no_text_is_in_both_splits_and_the_seed_decides(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", records() + records())  # every text twice
    one, again, other = (load_labelled(path, CONFIG, seed) for seed in (0, 0, 1))
    for label in ("a", "b"):
        assert not set(one.train[label]) & set(one.test[label])
        assert len(set(one.train[label])) == len(one.train[label]) == 40
    assert one == again
    assert one.test != other.test


def test_sizes_and_fields_are_those_asked_for(tmp_path: Path) -> None:
    rows = [{"body": row["text"], "topic": row["label"]} for row in records()]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    config = ProbingConfig(text="body", label="topic", train_texts=20, test_texts=6)
    found = load_labelled(path, config, 0)
    assert [len(found.train["a"]), len(found.test["a"])] == [10, 3]
    with pytest.raises(
        UsageError, match=r"t\.jsonl, line 1: .*field 'label', got None; fields here: body, topic"
    ):
        load_labelled(path, CONFIG, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x", "label": 1}\n[1]\n', "line 2: expected a JSON object"),
        ('{"text": ["x"], "label": 1}\n', r"line 1: expected a text or number in the field 'text'"),
        ("", "at least 2 classes, got none"),
    ],
)
def test_bad_jsonl_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(UsageError, match=message):
        load_labelled(str(tmp_path / "t.jsonl"), CONFIG, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "text,label," + "," * 100_000 + "\nx,y\n" * 10, "columns, expected at most 1,000"),
        ("t.csv", "text,label\n" + "x" * (1 << 21), "line 2: longer than 1,048,576 bytes"),
        ("t.csv", "y" * (1 << 21), "line 1: longer than 1,048,576 bytes"),
        ("t.jsonl", json.dumps({"text": "x", "label": "y" * 10**6}), "at least 2 classes, got y"),
        (
            "t.jsonl",
            "".join(json.dumps({"text": f"{i}", "label": f"{i}" + "y" * 1000}) + "\n" for i in range(1000)),
            "too few of 0y",
        ),
    ],
    ids=range(5),
)
def test_hostile_files_are_refused_at_once_and_in_few_words(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_labelled(str(tmp_path / name), CONFIG, 0)
    assert len(str(caught.value)) < 5000


def test_bad_csv_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"text,label\n\xff\xfe,1\n")
    with pytest.raises(UsageError, match=r"not UTF-8"):
        load_labelled(str(tmp_path / "t.csv"), CONFIG, 0)
    (tmp_path / "u.csv").write_text('text,label\n"open,1\n')
    with pytest.raises(UsageError, match="not CSV with a header"):
        load_labelled(str(tmp_path / "u.csv"), CONFIG, 0)
    with pytest.raises(UsageError, match="there is no file"):
        load_labelled(str(tmp_path / "v.jsonl"), CONFIG, 0)
    with pytest.raises(UsageError, match=r"neither a file that ends in .*ag_news"):
        load_labelled("somebody/some-data", CONFIG, 0)


def test_too_few_texts_of_a_class_are_refused(tmp_path: Path) -> None:
    rows = records() + records(MIN_TEXTS - 1, ("c",))
    with pytest.raises(UsageError, match=rf"at least {MIN_TEXTS} different texts.*c \({MIN_TEXTS - 1}\)"):
        load_labelled(write_jsonl(tmp_path / "t.jsonl", rows), CONFIG, 0)
    with pytest.raises(UsageError, match="at least 2 classes, got a"):
        load_labelled(write_jsonl(tmp_path / "u.jsonl", records(classes=("a",))), CONFIG, 0)


class Hub:
    """Answers as ``datasets`` would, with columns of made-up texts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, str]] = []
        monkeypatch.setattr("datasets.load_dataset", self.load)

    def load(self, name: str, split: str) -> dict[str, list[Any]]:
        self.asked.append((name, split))
        rows = [
            (f"{split} {label} {value} {i}", label, value)
            for label in range(30)
            for value, count in ((0, 60), (1, 30))
            for i in range(count)
        ]
        texts, labels, values = (list(column) for column in zip(*rows, strict=True))
        if split == "test":
            texts[0] = "train 0 0 5"  # also a training text
        return {
            "hard_text": texts,
            "text": texts,
            "profession": labels,
            "category": labels,
            "label": [label % 4 for label in labels],
            "gender": values,
            "rating": [1.0 + 4 * value for value in values],
        }


@pytest.mark.parametrize("name", HUB_SETS)
def test_data_sets_of_saebench(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    found = load_labelled(name, CONFIG, 0)
    assert hub.asked == [(HUB_SETS[name].dataset, "train"), (HUB_SETS[name].dataset, "test")]
    assert tuple(found.train) == HUB_SETS[name].classes
    for label in found.train:
        assert not set(found.train[label]) & set(found.test[label])
        if HUB_SETS[name].balance:
            values = [text.split()[2] for text in found.train[label]]
            assert values.count("0") == values.count("1") == 30


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(UsageError, match=r"ag_news cannot be loaded.*no route.*give a JSONL or CSV file"):
        load_labelled("fancyzhx/ag_news", CONFIG, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory in /proc")
def test_short_records_below_a_wide_header(tmp_path: Path) -> None:
    header = ",".join(["label", "text", *(f"c{number}" for number in range(900))])
    (tmp_path / "t.csv").write_text(f"{header}\n" + "a,b\n" * 250_000)

    def read() -> None:
        with pytest.raises(UsageError, match="at least 2 classes, got a"):
            load_labelled(str(tmp_path / "t.csv"), CONFIG, 0)

    right_or_refused(read)
