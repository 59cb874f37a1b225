"""A real S3 server (SeaweedFS) on loopback, with credentials, for as long as the tests run."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

BUCKET = "team"
ACCESS_KEY, SECRET_KEY = "team-key", "team-secret-1f0c"
READER_KEY, READER_SECRET = "reader-key", "reader-secret-77aa"
_IDENTITIES = {
    "identities": [
        {
            "name": "team",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER_KEY, "secretKey": READER_SECRET}],
            "actions": ["Read", "List"],
        },
    ]
}
_ENVIRONMENT = os.environ | {"GOGC": "400"}  # collecting its garbage less often saves a tenth of the time


@dataclass(frozen=True)
class S3Server:
    """Where it listens; ``environment`` is what a user exports to reach it."""

    endpoint: str
    process: subprocess.Popen[bytes]

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }


def start_server(folder: Path) -> S3Server:
    """Start it with its data in ``folder`` and one bucket; another port is tried where one is taken."""
    for _ in range(5):
        server = _start(folder)
        if server is not None:
            return server
    raise RuntimeError(f"SeaweedFS does not start:\n{(folder / 'log').read_text()[-3000:]}")


def stop_server(server: S3Server) -> None:
    """At once: nobody needs its data any more."""
    server.process.kill()
    server.process.wait()


def _start(folder: Path) -> S3Server | None:
    (folder / "s3.json").write_text(json.dumps(_IDENTITIES))
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = _free_ports(8)
    command = [
        Path(sys.executable).with_name("weed"), "server", f"-dir={folder}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
        f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.volumeSizeLimitMB=256",
        f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=0",
        "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
        f"-filer.localSocket={folder}/f.sock",
        "-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={folder}/s3.json",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-s3.autoCreateBucket=false",
        f"-s3.localSocket={folder}/s.sock",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_ENVIRONMENT)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{s3}/status", timeout=2).close()
            bucket = f"http://127.0.0.1:{filer}/buckets/{BUCKET}/"
            make = urllib.request.Request(bucket, method="POST")
            urllib.request.urlopen(make, timeout=5).close()
            # the first object of a bucket takes seconds, the others milliseconds
            warm = urllib.request.Request(f"{bucket}warm", b"x", {"Content-Type": "text/plain"}, method="PUT")
            urllib.request.urlopen(warm, timeout=20).close()
            return S3Server(f"http://127.0.0.1:{s3}", process)
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    process.kill()
    process.wait()
    return None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports
