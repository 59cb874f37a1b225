"""Credentials, region and endpoint as the AWS tools find them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from saecache.store import UsageError
from saecache.store.remote import RemoteFolder, open_remote_folder
from saecache.store.remote.credentials import s3_config
from saecache.store.remote.failures import AccessError, RemoteError

from .server import ACCESS_KEY, SECRET_KEY, S3Server

Files = Callable[..., dict[str, str]]
CREDENTIALS = """
[default]
aws_access_key_id = default-key
aws_secret_access_key = default%secret

[team]
aws_access_key_id = team-key
aws_secret_access_key = team-secret
aws_session_token = team-token
"""
CONFIG = """
[default]
region = eu-central-1

[profile team]
region = eu-west-3
endpoint_url = https://minio.example.com/
services = fast

[profile sso]
sso_session = company

[profile empty]
region = eu-north-1

[services fast]
s3 =
  endpoint_url = https://fast.example.com
"""


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """The two files, and the environment that names them."""

    def write(credentials: str = CREDENTIALS, config: str = CONFIG, **environ: str) -> dict[str, str]:
        (tmp_path / "credentials").write_text(credentials)
        (tmp_path / "config").write_text(config)
        return {
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            **environ,
        }

    return write


def test_the_default_profile(files: Files) -> None:
    config, provider = s3_config(files())
    assert config == {
        "region": "eu-central-1",
        "access_key_id": "default-key",
        "secret_access_key": "default%secret",
    }
    assert provider is None


def test_a_named_profile(files: Files) -> None:
    config, _ = s3_config(files(AWS_PROFILE="team"))
    assert config == {
        "region": "eu-west-3",
        "endpoint": "https://fast.example.com",
        "access_key_id": "team-key",
        "secret_access_key": "team-secret",
        "session_token": "team-token",
    }


def test_the_environment_comes_first(files: Files) -> None:
    environ = files(
        AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY="s",
        AWS_REGION="us-west-2",
        AWS_ENDPOINT_URL="https://all.example.com",
        AWS_ENDPOINT_URL_S3="https://s3.example.com/",
    )
    config, _ = s3_config(environ)
    assert config == {"region": "us-west-2", "endpoint": "https://s3.example.com"}  # obstore takes the keys


def test_without_any_file(tmp_path: Path) -> None:
    assert s3_config({"HOME": str(tmp_path)}) == ({"region": "us-east-1"}, None)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"AWS_PROFILE": "typo"}, "have only default, empty, sso, team"),
        ({"AWS_PROFILE": "empty"}, "'empty' holds no credentials"),
        ({"AWS_PROFILE": "sso"}, "pip install boto3"),
    ],
)
def test_profiles_that_cannot_be_used(files: Files, environ: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        s3_config(files(**environ))


def test_a_broken_file_is_named_and_not_quoted(files: Files) -> None:
    with pytest.raises(UsageError, match=r"cannot read the AWS file .*credentials: ") as caught:
        s3_config(files(credentials="aws_secret_access_key = hunter2\n"))
    assert "hunter2" not in str(caught.value)


def test_a_profile_reaches_a_real_server(
    team: str, s3_server: S3Server, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    profile = f"""
[colleague]
aws_access_key_id = {ACCESS_KEY}
aws_secret_access_key = {SECRET_KEY}
endpoint_url = {s3_server.endpoint}

[stranger]
aws_access_key_id = {ACCESS_KEY}
aws_secret_access_key = guessed
endpoint_url = {s3_server.endpoint}
"""
    for name, value in files(credentials=profile, config="").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_PROFILE", "colleague")
    location = open_remote_folder(team)
    assert location.put("x", b"1")
    assert SECRET_KEY not in f"{location!r} {vars(location)} {vars(location._access.backend)}"
    monkeypatch.setenv("AWS_PROFILE", "stranger")
    with pytest.raises(AccessError, match="not accepted") as caught:
        open_remote_folder(team).get("x", 1)
    assert "guessed" not in str(caught.value)


def test_plain_http_is_for_endpoints_that_say_so(
    team: str,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    open_quickly: Callable[[str], RemoteFolder],
) -> None:
    """An https endpoint is never left for http, although http is what this server speaks."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint.replace("http://", "https://"))
    with pytest.raises(RemoteError, match="no answer from https://"):
        open_quickly(team).get("x", 1)


@pytest.mark.parametrize(
    ("url", "environ"),
    [
        ("gs://bucket/team", {"GOOGLE_SERVICE_ACCOUNT_KEY": "{not json"}),
        ("az://container/team", {}),
    ],
)
def test_settings_of_other_stores_that_make_no_sense(
    team: str, url: str, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"do not make a valid \w+:// connection") as caught:
        open_remote_folder(url)
    assert "not json" not in str(caught.value)
