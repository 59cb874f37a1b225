"""A local server that speaks a part of the Hugging Face Hub's HTTP API: uploads, listings, downloads.

Written after the requests that huggingface_hub 2.4 makes. Commits are kept in memory. Large files are at a
second address, as the Hub keeps them with a content delivery network: it must never see a token.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

WRITER, READER = "hf_writer1f0c", "hf_reader77aa"
SIGNATURE = "Signature=5c1e"
DATE = "2026-11-28T10:20:30.000Z"


@dataclass
class Blob:
    """A file of a commit. ``large`` files are in the server's store by their sha256."""

    size: int
    oid: str
    sha256: str | None
    content: bytes = b""


@dataclass
class Repository:
    private: bool
    commits: list[tuple[str, str, dict[str, Blob]]] = field(default_factory=list)  # (sha, title, files)
    branches: dict[str, str] = field(default_factory=dict)

    def files(self, revision: str) -> dict[str, Blob] | None:
        sha = self.branches.get(revision, revision)
        return next((files for found, _, files in self.commits if found == sha), None)

    def commit(self, branch: str, title: str, files: dict[str, Blob]) -> str:
        sha = hashlib.sha1(f"{branch} {len(self.commits)} {title}".encode()).hexdigest()
        self.commits.append((sha, title, files))
        self.branches[branch] = sha
        return sha


class _Server(ThreadingHTTPServer):
    request_queue_size = 64


class HubServer:
    """``url`` is the endpoint, ``cdn`` the other address; clients are sent to ``cdn_shown``."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.store: dict[str, bytes] = {}  # large files by sha256
        self.parts: dict[tuple[str, int], bytes] = {}
        self.leaks: list[str] = []  # requests that carried a token to the other address
        self.page_files = 5
        self.wanting_fewer = 0  # so many requests to the API are answered with 429 and a time to wait
        self.multipart_over, self.chunk_bytes = 1 << 20, 300_000
        self.lock = threading.RLock()
        servers = [_Server(("127.0.0.1", 0), _handler(self, kind)) for kind in (_Api, _Cdn)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
        self.cdn_shown = self.cdn
        self._servers = servers
        for server in servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def make(self, kind: str, name: str, *, private: bool = True) -> Repository:
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        repository = Repository(private)
        repository.commit("main", "initial commit", {".gitattributes": small(attributes)})
        self.repositories[kind, name] = repository
        return repository

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


def small(content: bytes) -> Blob:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return Blob(len(content), oid, None, content)


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed: a store keeps nothing of such an upload
            self.close_connection = True
            return
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.read_chunks()
        url = urlsplit(self.path)
        try:
            with self.hub.lock:
                status, headers, content = self.answer(url.path, parse_qs(url.query), body)
        except _RefusedError as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            status, content = refused.status, json.dumps({"error": refused.message}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def answer(
        self, path: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        raise NotImplementedError

    def read_chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def log_message(self, *arguments: object) -> None:
        """Nothing on the terminal."""


def _handler(hub: HubServer, kind: type[_Handler]) -> type[_Handler]:
    return type("Handler", (kind,), {"hub": hub})


class _Cdn(_Handler):
    """Large files: uploads to signed addresses, downloads from signed addresses."""

    def answer(
        self, path: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if self.headers.get("Authorization") or any(t in str(self.headers) for t in (WRITER, READER)):
            self.hub.leaks.append(f"{self.command} {path}")
        if SIGNATURE not in self.path:
            raise _RefusedError(403)
        what, oid = path.strip("/").split("/")
        if self.command in ("GET", "HEAD"):
            if oid not in self.hub.store:
                raise _RefusedError(404)
            content = self.hub.store[oid]
            if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                part = content[int(found[1]) : int(found[2]) + 1]
                shown = f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{len(content)}"
                return 206, {"Content-Range": shown}, part
            return 200, {"ETag": f'"{hashlib.md5(content).hexdigest()}-1"'}, content
        if what == "complete":
            numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
            self.hub.store[oid] = b"".join(self.hub.parts.pop((oid, number)) for number in numbers)
            return 200, {}, b"{}"
        if "part" in query:
            self.hub.parts[oid, int(query["part"][0])] = body
        else:
            self.hub.store[oid] = body
        return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""


class _Api(_Handler):
    def answer(
        self, path: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", WRITER, READER):
            raise _RefusedError(401, "", "Invalid credentials in Authorization header")
        self.token = token
        if self.hub.wanting_fewer:
            self.hub.wanting_fewer -= 1
            header = {"Retry-After": "1"} if self.hub.wanting_fewer % 2 else {"RateLimit": '"api";r=0;t=1'}
            return 429, header, b"{}"
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return _json({"errors": _card_errors(json.loads(body)["content"]), "warnings": []})
        if path == "/verify":
            return self.verify(json.loads(body))
        if found := re.fullmatch(
            r"/api/(dataset|model)s/([^/]+/[^/]+)(?:/([^/]+)(?:/([^/]+)(?:/(.*))?)?)?", path
        ):
            kind, name, what, revision, below = found.groups()
            repository = self.repository(kind, name)
            return self.ask(
                repository, what or "revision", unquote(revision or "main"), unquote(below or ""), query, body
            )
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self.repository("dataset" if found[1] else "model", found[2])
            return self.batch(json.loads(body))
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self.repository("dataset" if found[1] else "model", found[2])
            return self.resolve(repository, unquote(found[3]), unquote(found[4]))
        raise _RefusedError(404)

    def repository(self, kind: str, name: str) -> Repository:
        found = self.hub.repositories.get((kind, name))
        if found is None or (found.private and not self.token):
            raise _RefusedError(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return found

    def need_write(self) -> None:
        if self.token != WRITER:
            raise _RefusedError(403 if self.token else 401, "", "You need the right to write")

    def create(self, wanted: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        self.need_write()
        key = (wanted.get("type", "model"), f"{wanted['organization']}/{wanted['name']}")
        if key in self.hub.repositories:
            raise _RefusedError(409, "", "You already created this repo")
        private = wanted.get("private", False) or wanted.get("visibility") == "private"
        self.hub.make(*key, private=private)
        return _json({"url": f"{self.hub.url}/{key[1]}", "id": key[1]})

    def ask(
        self,
        repository: Repository,
        what: str,
        revision: str,
        below: str,
        query: dict[str, list[str]],
        body: bytes,
    ) -> tuple[int, dict[str, str], bytes]:
        files = repository.files(revision)
        if files is None:
            raise _RefusedError(404, "RevisionNotFound", "Invalid rev id")
        if what == "revision":
            sha = repository.branches.get(revision, revision)
            return _json({"id": "x/y", "sha": sha, "private": repository.private, "siblings": [], "tags": []})
        if what == "paths-info":
            paths = parse_qs(body.decode())["paths"]
            return _json([_entry(path, files[path]) for path in paths if path in files])
        if what == "tree":
            return self.tree(files, below, query)
        if what == "preupload":
            asked = json.loads(body)["files"]
            return _json({"files": [self.mode(file, files) for file in asked]})
        assert what == "commit", what
        return self.commit(repository, revision, files, body)

    def tree(
        self, files: dict[str, Blob], folder: str, query: dict[str, list[str]]
    ) -> tuple[int, dict[str, str], bytes]:
        inside = {
            path: blob
            for path, blob in sorted(files.items())
            if f"{path}/".startswith(f"{folder}/") or not folder
        }
        if not inside:
            raise _RefusedError(404, "EntryNotFound", "no such folder")
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in inside.items():
            rest = path.removeprefix(folder).lstrip("/").split("/")
            for depth in range(1, len(rest)):
                above = "/".join([*([folder] if folder else []), *rest[:depth]])
                if depth == 1 or _is_true(query, "recursive"):
                    entries[above] = {"type": "directory", "path": above, "oid": "0" * 40, "size": 0}
            if len(rest) == 1 or _is_true(query, "recursive"):
                entries[path] = _entry(path, blob)
                if _is_true(query, "expand"):
                    entries[path]["lastCommit"] = {"id": "0" * 40, "title": "x", "date": DATE}
        start = int(query.get("cursor", ["0"])[0])
        page = [*entries.values()][start : start + self.hub.page_files]
        headers = {}
        if start + len(page) < len(entries):
            more = {name: values[0] for name, values in query.items()} | {"cursor": str(start + len(page))}
            text = "&".join(f"{name}={quote(value)}" for name, value in more.items())
            endpoint = f"http://{self.headers['Host']}"
            headers["Link"] = f'<{endpoint}{urlsplit(self.path).path}?{text}>; rel="next"'
        status, more_headers, content = _json(page)
        return status, headers | more_headers, content

    def mode(self, file: dict[str, Any], files: dict[str, Blob]) -> dict[str, Any]:
        sample = base64.b64decode(file["sample"])
        large = file["path"].endswith(".safetensors") or file["size"] > 10_000_000 or _is_binary(sample)
        known = {"oid": files[file["path"]].oid} if file["path"] in files else {}
        mode = "lfs" if large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known}

    def batch(self, wanted: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        self.need_write()
        objects = []
        for file in wanted["objects"]:
            oid, size = file["oid"], file["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.hub.store:
                upload: dict[str, Any] = {"href": f"{self.hub.cdn_shown}/upload/{oid}?{SIGNATURE}"}
                if size > self.hub.multipart_over:
                    count = -(-size // self.hub.chunk_bytes)
                    upload = {"href": f"{self.hub.cdn_shown}/complete/{oid}?{SIGNATURE}"}
                    part = f"{self.hub.cdn_shown}/upload/{oid}?{SIGNATURE}&part={{}}"
                    upload["header"] = {f"{n:05}": part.format(n) for n in range(1, count + 1)}
                    upload["header"]["chunk_size"] = str(self.hub.chunk_bytes)
                endpoint = f"http://{self.headers['Host']}"
                answer["actions"] = {"upload": upload, "verify": {"href": f"{endpoint}/verify"}}
            objects.append(answer)
        return _json({"transfer": "basic", "objects": objects})

    def verify(self, wanted: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        self.need_write()
        content = self.hub.store.get(wanted["oid"], b"")
        if hashlib.sha256(content).hexdigest() != wanted["oid"]:
            self.hub.store.pop(wanted["oid"], None)
            raise _RefusedError(422, "", "other bytes arrived")
        return _json({})

    def commit(
        self, repository: Repository, branch: str, files: dict[str, Blob], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        self.need_write()
        if branch not in repository.branches:
            raise _RefusedError(403, "", "only branches can be written to")
        header, *operations = (json.loads(line) for line in body.splitlines())
        parent = header["value"].get("parentCommit")
        if parent not in (None, repository.branches[branch]):
            raise _RefusedError(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(files)
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
                if _is_binary(content[:512]):
                    raise _RefusedError(400, "", "binary files have to be large files")
                if path == "README.md" and _card_errors(content.decode()):
                    raise _RefusedError(400, "", "invalid metadata")
                files[path] = small(content)
            elif operation["key"] == "lfsFile":
                if hashlib.sha256(self.hub.store.get(value["oid"], b"")).hexdigest() != value["oid"]:
                    raise _RefusedError(422, "", "no such large file")
                oid, size = value["oid"], value["size"]
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
                files[path] = Blob(value["size"], small(pointer.encode()).oid, value["oid"])
            elif operation["key"] == "deletedFile":
                if path not in files:
                    raise _RefusedError(404, "EntryNotFound", "A file with this name doesn't exist")
                del files[path]
            else:
                raise _RefusedError(400, "", operation["key"])
        sha = repository.commit(branch, header["value"]["summary"], files)
        return _json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/x/y/commit/{sha}"})

    def resolve(self, repository: Repository, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        files = repository.files(revision)
        if files is None:
            raise _RefusedError(404, "RevisionNotFound", "Invalid rev id")
        if path not in files:
            raise _RefusedError(404, "EntryNotFound", "Entry not found")
        blob = files[path]
        headers = {"X-Repo-Commit": repository.branches.get(revision, revision), "Accept-Ranges": "bytes"}
        if blob.sha256 is None:
            return 200, headers | {"ETag": f'"{blob.oid}"', "Content-Type": "text/plain"}, blob.content
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        location = f"{self.hub.cdn_shown}/blob/{blob.sha256}?{SIGNATURE}"
        return 302, headers | {"Location": location}, b"Found. Redirecting"


def _is_binary(sample: bytes) -> bool:
    return b"\0" in sample or any(byte > 0xF4 for byte in sample)


def _is_true(query: dict[str, list[str]], name: str) -> bool:
    """Whether a client asks for something: huggingface_hub 0.x writes True."""
    return query.get(name, [""])[0].lower() == "true"


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.sha256 is not None:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
    return entry


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(value).encode()


def _card_errors(content: str) -> list[dict[str, str]]:
    """What the Hub checks of a card's metadata: that they are YAML, and the types of some keys."""
    found = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", content, re.DOTALL)
    if not found:
        return []
    try:
        values = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [{"message": str(error)}]
    lists = [key for key in ("tags", "datasets") if not isinstance(values.get(key, []), list)]
    texts = [key for key in ("license", "library_name") if not isinstance(values.get(key, ""), str)]
    return [{"message": f"{key} is of a wrong type"} for key in lists + texts]


@contextmanager
def running_hub() -> Iterator[HubServer]:
    hub = HubServer()
    try:
        yield hub
    finally:
        hub.close()
