"""Every source keeps one contract: a fixed order, readable from any document, identified by its content."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saecache.common.errors import UsageError
from saecache.harvest.text.config import BuiltinText, FilesText, PretokenizedConfig
from saecache.harvest.text.sources import TextSource, open_source
from saecache.harvest.text.sources.columns import ModelSide, TokenIdsColumn
from saecache.harvest.text.sources.stdlib import StdlibSource

TEXTS = ["one", "", "three\nlines\r\nhere", "vier – fünf", "6" * 5000, "seven", "eight"]


def write_text(folder: Path) -> dict[str, object]:
    for i, text in enumerate(TEXTS):
        (folder / "deep").mkdir(exist_ok=True)
        (folder / ("deep" if i % 2 else ".") / f"{i}.txt").write_bytes(text.encode())
    return {"paths": [str(folder / "**/*.txt")]}


def write_jsonl(folder: Path) -> dict[str, object]:
    lines = [json.dumps({"text": t, "n": i}, ensure_ascii=bool(i % 2)) for i, t in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("\n".join(lines[:3]) + "\n\n", "utf-8")
    (folder / "b.ndjson").write_text("\n".join(lines[3:]), "utf-8")
    return {"paths": [str(folder)]}


def write_parquet(folder: Path) -> dict[str, object]:
    table = pa.table({"body": [*TEXTS[:5], None, *TEXTS[5:]], "n": list(range(8))})
    pq.write_table(table.slice(0, 4), folder / "0.parquet", row_group_size=2)
    pq.write_table(table.slice(4), folder / "1.parquet", row_group_size=3)
    return {"paths": [str(folder / "*.parquet")], "column": "body"}


SOURCES: dict[str, Callable[[Path], dict[str, object]]] = {
    "text": write_text,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


@pytest.fixture(params=[*SOURCES, "stdlib"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> TextSource:
    if request.param == "stdlib":
        return open_source(BuiltinText())
    return open_source(FilesText.model_validate(SOURCES[request.param](tmp_path)))


def test_documents_are_numbered_and_begin_anywhere(source: TextSource) -> None:
    documents = [d for d, _ in zip(source.documents(), range(40), strict=False)]
    assert [d.number for d in documents] == list(range(len(documents)))
    assert len(documents) >= len(TEXTS)
    starts = {3} if isinstance(source, StdlibSource) else {0, 1, 2, 3, 5, len(documents) - 1}
    for start in starts:  # reading the standard library takes a second
        rest = [d for d, _ in zip(source.documents(start), range(len(documents) - start), strict=False)]
        assert rest == documents[start:]


def test_beyond_the_end_is_nothing(source: TextSource) -> None:
    """Also what a harvest that ended there finds when it is run again."""
    assert list(source.documents(10**9)) == []


def test_identity_is_plain_and_stable(source: TextSource) -> None:
    assert source.identity() == source.identity()
    assert json.loads(json.dumps(source.identity())) == source.identity()
    assert len(source.identity()["sha256"]) == 64


@pytest.mark.parametrize("kind", SOURCES)
def test_file_sources_read_what_was_written(kind: str, tmp_path: Path) -> None:
    source = open_source(FilesText.model_validate(SOURCES[kind](tmp_path)))
    texts = [text for _, text in source.documents()]
    expected = [*TEXTS[:5], "", *TEXTS[5:]] if kind == "parquet" else TEXTS
    if kind == "text":  # by path: deep/ comes after the files beside it; line ends become \n
        order = [0, 2, 4, 6, 1, 3, 5]
        expected = [TEXTS[i].replace("\r\n", "\n") for i in order]
    assert texts == expected


@pytest.mark.parametrize("kind", SOURCES)
def test_identity_is_content_not_place(kind: str, tmp_path: Path) -> None:
    def identity(folder: str) -> dict[str, object]:
        (tmp_path / folder).mkdir(exist_ok=True)
        return open_source(FilesText.model_validate(SOURCES[kind](tmp_path / folder))).identity()

    assert identity("here") == identity("there")
    (tmp_path / "copy").mkdir()
    config = FilesText.model_validate(SOURCES[kind](tmp_path / "copy"))
    first = min((tmp_path / "copy").rglob("*.*"))
    if kind == "parquet":
        pq.write_table(pa.table({"body": ["other"]}), first)
    else:
        first.write_text('{"text": "other"}\n')
    assert open_source(config).identity() != identity("here")
    first.rename(first.with_name("zzz" + first.suffix))  # another order is another text
    assert open_source(config).identity() != identity("here")


def bad(tmp_path: Path, match: str, **config: object) -> None:
    with pytest.raises(UsageError, match=match):
        source = open_source(FilesText.model_validate(config))
        source.identity()
        list(source.documents())


def test_no_file(tmp_path: Path) -> None:
    bad(tmp_path, r"no file matches '.*nothing\*\.txt'", paths=str(tmp_path / "nothing*.txt"))
    (tmp_path / "empty").mkdir()
    bad(tmp_path, r"no file matches .*empty", paths=str(tmp_path / "empty"))


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    (tmp_path / "run [2]").mkdir()
    (tmp_path / "run [2]" / "a [1].txt").write_text("one")
    for place in ("run [2]", "run [2]/a [1].txt", "run [[]2]/*.txt"):
        source = open_source(FilesText.model_validate({"paths": str(tmp_path / place)}))
        assert [document.content for document in source.documents()] == ["one"]


def test_unknown_extension(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_text("text")
    bad(tmp_path, r"cannot tell the format of .*a\.dat", paths=str(tmp_path / "a.dat"))
    config = FilesText(paths=(str(tmp_path / "a.dat"),), format="text")
    assert [d.content for d in open_source(config).documents()] == ["text"]


def test_missing_column_lists_the_columns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x", "title": "y"}\n')
    bad(tmp_path, r"a\.jsonl:1 has no column 'text'; it has: body, title", paths=str(tmp_path))
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    bad(tmp_path, r"no column 'text'; it has: body", paths=str(tmp_path / "*.parquet"))


def test_a_column_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 7}\n')
    bad(tmp_path, r"a\.jsonl:1: column 'text' holds int, expected text", paths=str(tmp_path))


def test_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": "y"\n')
    bad(tmp_path, r"a\.jsonl:3 is not valid JSON", paths=str(tmp_path))
    (tmp_path / "a.jsonl").write_text('["x"]\n')
    bad(tmp_path, r"a\.jsonl:1: expected a JSON object, got list", paths=str(tmp_path))


def test_not_a_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no")
    bad(tmp_path, r"a\.parquet is not a Parquet file", paths=str(tmp_path))


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_parquet_file_with_damaged_pages(tmp_path: Path, place: float) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i} " * 20 for i in range(2000)]}), path)
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    content[at : at + 200] = b"\xff" * 200
    path.write_bytes(content)
    bad(tmp_path, r"a\.parquet (cannot be read as|is not a) Parquet", paths=str(tmp_path))


def test_a_parquet_file_with_text_that_is_none(tmp_path: Path) -> None:
    parts = [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    array = pa.Array.from_buffers(pa.string(), 1, parts)
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    bad(tmp_path, r"a\.parquet cannot be read as Parquet", paths=str(tmp_path))


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("[" * 100_000, "is not valid JSON"),
        ('{"text": "a\\ud800b"}', r"character 1 is half a character \(\\ud800\), which no text has"),
        ('{"' + "x" * 10**6 + '": 1}', "has no column 'text'; it has: x"),
        ("{" + ", ".join(f'"{i}": 1' for i in range(10**5)) + "}", "has no column 'text'; it has: 0"),
    ],
)
def test_a_hostile_line_is_named(tmp_path: Path, line: str, match: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "x"}}\n{line}\n')
    with pytest.raises(UsageError, match=rf"a\.jsonl:2:? {match}") as caught:
        open_source(FilesText(paths=(str(tmp_path),))).identity()
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("value", [[[1], [1, 2]], [[1, 2]], [10**30], {"a": 1}, "1", [1.5], [True]])
def test_token_ids_that_are_none(value: object) -> None:
    column = TokenIdsColumn(PretokenizedConfig(tokenizer="unknown"), ModelSide(None, "", 100))
    with pytest.raises(UsageError, match=r"here: column '\w+' holds \w+, expected a list of token ids"):
        column.read(value, "here")


@pytest.mark.parametrize("prefix", [b"good \xc3\xa4 ", b"x" * ((1 << 22) - 1)])
def test_not_utf8_is_told_before_the_run(tmp_path: Path, prefix: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine")
    (tmp_path / "b.txt").write_bytes(prefix + b"\xe4 bad")
    with pytest.raises(UsageError, match=rf"b\.txt is not UTF-8 text \(byte {len(prefix)}\)"):
        open_source(FilesText(paths=(str(tmp_path),)))


def test_utf8_across_reads_is_fine(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * ((1 << 22) - 1) + "ä".encode())
    assert open_source(FilesText(paths=(str(tmp_path),))).identity()["bytes"] == (1 << 22) + 1


def test_empty_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    bad(tmp_path, "the text is empty", paths=str(tmp_path))


def test_column_without_effect(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    bad(tmp_path, "text.column has no effect", paths=str(tmp_path), column="body")
