"""The stores of a stress run, and a witness that looks at them without saecache."""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from ..store.remote.server import ACCESS_KEY, BUCKET, SECRET_KEY, start_server, stop_server

PROGRAMS = {  # name -> variable with the program's path, the program, its arguments
    "moto": ("SAECACHE_MOTO_SERVER", "moto_server", ["-H", "127.0.0.1", "-p", "{port}"]),
    "localbucket": ("SAECACHE_LOCALBUCKET", "localbucket", ["--port", "{port}", "{folder}"]),
}
PACKAGES = {"moto": "moto[server]", "localbucket": "localbucket"}
_START_SECONDS = 120.0


@dataclass
class Store:
    """A running S3 server."""

    name: str
    endpoint: str

    def __post_init__(self) -> None:
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """What a user of this store exports; ``endpoint`` may be that of a proxy in front of it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Every object below ``prefix`` by its key relative to it, with its bytes."""
        return {
            key.removeprefix(prefix + "/"): self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in self._keys(prefix)
        }

    def empty(self, prefix: str) -> None:
        """Remove every object below ``prefix``, one by one: not every server removes many at once."""
        for key in self._keys(prefix):
            self._client.delete_object(Bucket=BUCKET, Key=key)

    def _keys(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix + "/")
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def fill(self, prefix: str, files: dict[str, bytes]) -> None:
        """Write objects as a push leaves them, without a push."""
        for key, content in files.items():
            self._client.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=content)

    def make_bucket(self) -> None:
        self._client.create_bucket(Bucket=BUCKET)


def program_of(name: str) -> list[str] | None:
    """The command that starts the server ``name``, if it is there; it has places for a port and a folder."""
    variable, program, arguments = PROGRAMS[name]
    found = os.environ.get(variable) or shutil.which(program)
    return None if found is None else [found, *arguments]


@contextmanager
def running_store(name: str, folder: Path) -> Iterator[Store]:
    """``seaweedfs``, or one of :data:`PROGRAMS`, with one empty bucket."""
    folder.mkdir()
    if name == "seaweedfs":
        server = start_server(folder)
        try:
            yield Store(name, server.endpoint)
        finally:
            stop_server(server)
        return
    command = program_of(name)
    if command is None:
        variable, program, _ = PROGRAMS[name]
        raise SystemExit(f"{program} is not installed: pip install '{PACKAGES[name]}' and set {variable}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [word.format(port=port, folder=folder) for word in command]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    try:
        store = Store(name, f"http://127.0.0.1:{port}")
        _wait_for(store.endpoint, process)
        store.make_bucket()
        yield store
    finally:
        process.kill()
        process.wait()


def _wait_for(endpoint: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # an answer is an answer
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"the server at {endpoint} does not start")
