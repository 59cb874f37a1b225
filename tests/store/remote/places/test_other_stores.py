"""Azure and GCS, as far as it goes without them: where requests go, and what is said of an answer."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from saecache.store.remote import open_remote_folder
from saecache.store.remote.places.failures import AccessError, translate

from ..conftest import QUICK


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with the server's ``answer``: (status, code)."""

    def do_GET(self) -> None:
        status, code = self.server.answer  # type: ignore[attr-defined]
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "answer", "words"),
    [
        ("az://team/x", (404, "ContainerNotFound"), "no such bucket.*AZURE_STORAGE_ACCOUNT_NAME"),
        ("az://team/x", (403, "AuthenticationFailed"), "not accepted.*AZURE_STORAGE_ACCOUNT_KEY"),
        ("gs://team/x", (404, "NoSuchBucket"), "no such bucket.*GOOGLE_BASE_URL"),
        ("gs://team/x", (401, "AuthenticationRequired"), "not accepted.*GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_a_plain_endpoint_is_asked_and_its_refusal_told_in_the_terms_of_the_store(
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    answer: tuple[int, str],
    words: str,
) -> None:
    server.answer = answer  # type: ignore[attr-defined]
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AZURE_ENDPOINT", f"{endpoint}/account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    monkeypatch.setenv("GOOGLE_BASE_URL", endpoint)
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    with pytest.raises(AccessError, match=words) as told:
        open_remote_folder(url, QUICK).get("zarr.json", 100)
    assert "AWS_" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "asked", "words"),
    [
        ("s3://team/x", "http://169.254.169.254/latest/api/token", "AWS_PROFILE"),
        ("gs://team/x", "http://metadata.google.internal/computeMetadata", "gcloud auth application-default"),
        ("az://team/x", "http://169.254.169.254/metadata/identity", "AZURE_STORAGE_SAS_TOKEN.*az login"),
    ],
)
def test_missing_credentials_are_told_in_the_terms_of_the_store(url: str, asked: str, words: str) -> None:
    """The library asks the machine for a role where nothing else gives credentials. It named those of S3."""
    told = translate(OSError(f"error sending request for url ({asked})"), "reading", url, "")
    assert isinstance(told, AccessError)
    assert re.search(f"no credentials were found; .*{words}", str(told))
    assert ("AWS_" in str(told)) == url.startswith("s3://")
