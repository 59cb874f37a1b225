"""Models and datasets of the hub, from a small server on this machine that answers as the hub does."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

FIRST, SECOND, CONVERTED = "a" * 40, "b" * 40, "c" * 40
Files = dict[str, bytes]


@dataclass
class Hub:
    """Repositories by (kind, name); each has references to commits, and the files of each commit."""

    references: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    files: dict[tuple[str, str], dict[str, Files]] = field(default_factory=dict)
    url: str = ""

    def add(self, kind: str, name: str, files: Files, commit: str = FIRST, reference: str = "main") -> None:
        self.references.setdefault((kind, name), {})[reference] = commit
        self.files.setdefault((kind, name), {})[commit] = files

    def split(self, repository: tuple[str, str], rest: str) -> tuple[str | None, str]:
        """'refs/convert/parquet/a/b' -> (its commit, 'a/b')."""
        known = dict(zip(self.files[repository], self.files[repository], strict=True))
        known |= self.references[repository]
        for name in sorted(known, key=len, reverse=True):
            if rest == name or rest.startswith(name + "/"):
                return known[name], rest[len(name) + 1 :]
        return None, rest


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, body: bytes = b"{}", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def send_json(self, value: object) -> None:
            self.send(200, json.dumps(value).encode(), Content_Type="application/json")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            for kind, name in hub.references:
                api = f"/api/{kind}/{name}"
                files = f"{'' if kind == 'models' else '/datasets'}/{name}/resolve/"
                if path.startswith(files):
                    return self.resolve((kind, name), path.removeprefix(files))
                if path == api or path.startswith(f"{api}/revision/"):
                    return self.info(
                        (kind, name), path.removeprefix(api).removeprefix("/revision/") or "main"
                    )
                if path.startswith(f"{api}/tree/"):
                    return self.tree((kind, name), path.removeprefix(f"{api}/tree/"))
            return self.send(404, X_Error_Code="RepoNotFound")

        def resolve(self, repository: tuple[str, str], rest: str) -> None:
            commit, name = hub.split(repository, rest)
            content = hub.files[repository].get(commit or "", {}).get(name)
            if content is None:
                return self.send(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit or "")
            facts = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X_Repo_Commit": commit or ""}
            if "Range" in self.headers and self.command == "GET":
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                part = content[int(first) : int(last) + 1 if last else None]
                end = int(first) + len(part) - 1
                return self.send(206, part, Content_Range=f"bytes {first}-{end}/{len(content)}", **facts)
            return self.send(200, content, **facts)

        def info(self, repository: tuple[str, str], revision: str) -> None:
            commit, _ = hub.split(repository, revision)
            if commit is None:
                return self.send(404, X_Error_Code="RevisionNotFound")
            files = [{"rfilename": name} for name in hub.files[repository][commit]]
            return self.send_json({"id": repository[1], "sha": commit, "siblings": files, "tags": []})

        def tree(self, repository: tuple[str, str], rest: str) -> None:
            commit, prefix = hub.split(repository, rest)
            entries = self.entries(repository, commit or "", prefix)
            if "recursive=true" not in self.path.lower():
                depth = prefix.count("/") + 1 if prefix else 0
                entries = [entry for entry in entries if entry["path"].count("/") == depth]
            self.send_json(entries)

        def entries(self, repository: tuple[str, str], commit: str, prefix: str) -> list[dict[str, Any]]:
            files = {n: c for n, c in hub.files[repository][commit].items() if n.startswith(prefix)}
            folders = {
                name.rsplit("/", depth)[0] for name in files for depth in range(1, name.count("/") + 1)
            }
            oid = {"oid": "0" * 40}
            listed = [{"type": "directory", "path": p, "size": 0, **oid} for p in sorted(folders)]
            return listed + [{"type": "file", "path": n, "size": len(c), **oid} for n, c in files.items()]

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            is_json = "json" in self.headers.get("Content-Type", "")
            wanted = json.loads(body)["paths"] if is_json else parse_qs(body)["paths"]
            for repository in hub.references:
                start = f"/api/{repository[0]}/{repository[1]}/paths-info/"
                if unquote(self.path).startswith(start):
                    commit, _ = hub.split(repository, unquote(self.path).removeprefix(start))
                    found = self.entries(repository, commit or "", "")
                    return self.send_json([entry for entry in found if entry["path"] in wanted])
            return self.send(404)

    return Handler


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    made = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(made))
    made.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "n": list(range(len(texts)))}), buffer, row_group_size=3)
    return buffer.getvalue()


def ask(hub: Hub, home: Path, code: str, *arguments: object) -> Any:
    """Run ``code`` against the hub in a process of its own; it leaves its answer in ``answer``."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    program = f"import json, sys\narguments = sys.argv[1:]\n{code}\nprint(json.dumps(answer))"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


READ_DATASETS = """
from saecache.harvest.text.config import HubText
from saecache.harvest.text.sources import open_source
from saecache.common.errors import SaecacheError

def read(start, pinned=None, **settings):
    try:
        source = open_source(HubText(**settings), pinned)
        return [source.identity(), [list(document) for document in source.documents(start)]]
    except SaecacheError as error:
        return [type(error).__name__, str(error)]

web, lines = {"dataset": "org/web"}, {"dataset": "org/lines"}
export = {**web, "revision": "refs/convert/parquet"}
answer = {
    "script": read(0, **web),
    "parquet": read(0, **export),
    "resumed": read(5, **export),
    "lines": read(1, **lines, subset="small"),
    "pinned": read(0, {"dataset": "org/lines", "revision": "%s"}, **lines, subset="small"),
    "subset": read(0, **lines, subset="big"),
    "split": read(0, **lines, split="test"),
    "column": read(0, **lines, column="body"),
    "revision": read(0, **lines, revision="none"),
    "dataset": read(0, dataset="org/none"),
}
"""


def test_datasets(hub: Hub, tmp_path: Path) -> None:
    hub.add("datasets", "org/web", {"README.md": b"# web", "web.py": b"import os"})
    pieces = {
        f"plain_text/partial-train/000{i}.parquet": parquet([f"{i}-{j}" for j in range(4)]) for i in (0, 1)
    }
    hub.add("datasets", "org/web", pieces, CONVERTED, "refs/convert/parquet")
    card = b"---\nconfigs:\n- config_name: small\n  data_files: data/*.jsonl\n---\n"
    old, new = (b'{"text": "%s"}\n' % text for text in (b"old", b"new"))
    hub.add("datasets", "org/lines", {"README.md": card, "data/a.jsonl": old * 2}, FIRST, "v1")
    hub.add("datasets", "org/lines", {"README.md": card, "data/a.jsonl": new * 3}, SECOND)
    got = ask(hub, tmp_path, READ_DATASETS % FIRST)

    identity, documents = got["parquet"]
    assert identity == {
        "kind": "hub",
        "dataset": "org/web",
        "subset": None,
        "split": "train",
        "revision": CONVERTED,
        "column": "text",
    }
    assert documents == [[4 * i + j, f"{i}-{j}"] for i in (0, 1) for j in range(4)]
    assert got["resumed"][1] == documents[5:]
    assert got["lines"][1] == [[1, "new"], [2, "new"]]
    assert got["pinned"][0]["revision"] == FIRST  # a revision left open stays what the first run found
    assert got["pinned"][1] == [[0, "old"], [1, "old"]]
    for what, message in {
        "script": "set text.revision=refs/convert/parquet",
        "subset": "'big' not found. Available: ['small']",
        "split": "Bad split: test. Available splits: ['train']",
        "column": "has no column 'body'; it has: text",
        "revision": "dataset org/lines has no revision 'none'",
        "dataset": "the hub has no dataset 'org/none'",
    }.items():
        assert got[what][0] == "UsageError" and message in got[what][1], got[what]


HARVEST = """
from pathlib import Path
from saecache.harvest import HarvestConfig, LanguageModel, load_model_of
from saecache.harvest.runner import run
from saecache.store import open_cache
from saecache.common.errors import UsageError

def harvest():
    text = {"kind": "hub", "dataset": "org/text"}
    values = {"model": {"name": "org/tiny"}, "text": text, "tokens": {"context": 16}, "device": "cpu",
              "hooks": ["resid_post.1"], "num_tokens": 100}
    result = run(HarvestConfig.model_validate(values), arguments[0])
    return [result.reused, result.manifest.identity]

def refused(name, **settings):
    try:
        LanguageModel.load(name, **settings)
    except UsageError as error:
        return str(error)

answer = harvest()
"""

LOAD_AND_REFUSE = """
answer = {"harvest": answer}
answer["again"] = load_model_of(open_cache(arguments[0])).revision
answer["none"] = refused("org/none")
answer["revision"] = refused("org/tiny", revision="none")
answer["pickled"] = refused("org/pickled")
"""


def test_a_harvest_is_pinned_to_the_commits_it_found(
    hub: Hub, tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    files = {path.name: path.read_bytes() for path in model_folder("neox").iterdir()}
    hub.add("models", "org/tiny", {**files, "onnx/model.onnx": b"large", "pytorch_model.bin": b"pickle"})
    pickled = {name: data for name, data in files.items() if name != "model.safetensors"}
    hub.add("models", "org/pickled", {**pickled, "pytorch_model.bin": b"pickle"})
    hub.add("datasets", "org/text", {"train.parquet": parquet([f"a document {i}" for i in range(40)])})
    out, home = tmp_path / "cache", tmp_path / "home"
    first = ask(hub, home, HARVEST + LOAD_AND_REFUSE, out)

    reused, identity = first["harvest"]
    assert not reused
    model = identity["model"]
    assert (model["name"], model["revision"], identity["text"]["revision"]) == ("org/tiny", FIRST, FIRST)
    assert model["weights_sha256"] == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert first["again"] == FIRST
    fetched = {path.name for path in home.rglob("*") if path.is_file() or path.is_symlink()}
    assert "model.safetensors" in fetched and not {"model.onnx", "pytorch_model.bin"} & fetched
    assert "neither a folder here nor on the hub" in first["none"]
    assert "has no revision 'none'" in first["revision"]
    assert "no safetensors weights" in first["pickled"]

    hub.add("models", "org/tiny", files, SECOND)  # both move on
    hub.add("datasets", "org/text", {"train.parquet": parquet(["another"])}, SECOND)
    assert ask(hub, home, HARVEST, out) == [True, identity]


def test_a_missing_decompressor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from saecache.common.errors import UsageError
    from saecache.harvest.text.config import HubText
    from saecache.harvest.text.sources import hub as hub_source
    from saecache.harvest.text.sources.columns import TextColumn

    def load_dataset(*_: object, **__: object) -> None:
        raise ValueError("Compression type zstd not supported")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub_source, "resolve_commit", lambda *_: FIRST)
    with pytest.raises(UsageError, match="pip install zstandard"):
        list(hub_source.HubSource(HubText(dataset="org/packed"), TextColumn("text")).documents())


def test_a_lost_connection_says_where_and_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from saecache.common.errors import SaecacheError
    from saecache.harvest.text.config import HubText
    from saecache.harvest.text.sources import hub as hub_source
    from saecache.harvest.text.sources.columns import TextColumn

    def broken() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: broken())
    monkeypatch.setattr(hub_source, "resolve_commit", lambda *_: FIRST)
    documents = hub_source.HubSource(HubText(dataset="org/far"), TextColumn("text")).documents()
    assert next(documents).content == "one"
    with pytest.raises(
        SaecacheError, match=r"stopped at document 1: reset by peer; run the same command again"
    ):
        next(documents)
