"""Credentials, region and endpoint as the AWS tools find them."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saecache.store import UsageError
from saecache.store.remote import RemoteFolder, open_remote_folder
from saecache.store.remote.places.credentials import s3_config
from saecache.store.remote.places.failures import AccessError, RemoteError

from ..server import ACCESS_KEY, SECRET_KEY, S3Server

Files = Callable[..., None]
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
sso_start_url = https://company.example.com/start
sso_region = eu-west-3
sso_account_id = 123456789012
sso_role_name = reader

[profile empty]
region = eu-north-1

[services fast]
s3 =
  endpoint_url = https://fast.example.com
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Writes the two files, and sets the environment so that it names them."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def write(credentials: str = CREDENTIALS, config: str = CONFIG, **environ: str) -> None:
        (tmp_path / "credentials").write_text(credentials)
        (tmp_path / "config").write_text(config)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    return write


@pytest.fixture
def without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("boto3", "botocore", "botocore.session", "botocore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)


def test_the_default_profile(files: Files) -> None:
    files()
    config, provider = s3_config()
    assert config == {"region": "eu-central-1"}
    assert provider is not None
    credentials = provider()
    assert credentials["access_key_id"] == "default-key"
    assert credentials["secret_access_key"] == "default%secret"
    assert credentials["token"] is None


def test_a_named_profile(files: Files) -> None:
    files(AWS_PROFILE="team")
    config, provider = s3_config()
    assert config == {"region": "eu-west-3", "endpoint": "https://fast.example.com"}
    assert provider is not None
    credentials = provider()
    assert credentials["access_key_id"] == "team-key"
    assert credentials["secret_access_key"] == "team-secret"
    assert credentials["token"] == "team-token"


def test_a_profile_whose_credentials_come_from_a_process(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"Version": 1, "AccessKeyId": "process-key", "SecretAccessKey": "s", "SessionToken": "t"}
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    files(
        config=f"[profile helper]\ncredential_process = cat {tmp_path}/answer.json\n"
        f"[profile broken]\ncredential_process = cat {tmp_path}/hunter2\n",
        AWS_PROFILE="helper",
    )
    _, provider = s3_config()
    assert provider is not None
    assert provider()["access_key_id"] == "process-key"
    monkeypatch.setenv("AWS_PROFILE", "broken")
    with pytest.raises(UsageError, match=r"'broken' cannot be read .*aws sso login") as caught:
        s3_config()
    assert "hunter2" not in str(caught.value)


def test_the_environment_comes_first(files: Files) -> None:
    files(
        AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY="s",
        AWS_REGION="us-west-2",
        AWS_ENDPOINT_URL="https://all.example.com",
        AWS_ENDPOINT_URL_S3="https://s3.example.com/",
    )
    config, provider = s3_config()
    assert config == {"region": "us-west-2", "endpoint": "https://s3.example.com"}
    assert provider is None  # the library takes the keys


def test_keys_of_the_environment_and_the_region_of_the_profile(files: Files) -> None:
    files(AWS_ACCESS_KEY_ID="k", AWS_SECRET_ACCESS_KEY="s")
    assert s3_config() == ({"region": "eu-central-1"}, None)


def test_without_any_file(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert s3_config() == ({"region": "us-east-1"}, None)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"AWS_PROFILE": "typo"}, "have only default, empty, sso, team"),
        ({"AWS_PROFILE": "empty"}, "'empty' holds no credentials"),
        ({"AWS_PROFILE": "sso"}, "'sso' cannot be read .*aws sso login --profile sso"),
    ],
)
def test_profiles_that_cannot_be_used(files: Files, environ: dict[str, str], words: str) -> None:
    files(**environ)
    with pytest.raises(UsageError, match=words):
        s3_config()


@pytest.mark.parametrize("environ", [{"AWS_PROFILE": "sso"}, {"AWS_PROFILE": "team"}, {}])
def test_without_boto3_the_message_says_what_to_install(
    files: Files, without_boto3: None, environ: dict[str, str]
) -> None:
    files(**environ)
    with pytest.raises(UsageError, match=r"pip install boto3.*saecache\[aws\]"):
        s3_config()


def test_keys_of_the_environment_need_no_boto3(files: Files, without_boto3: None) -> None:
    files(AWS_ACCESS_KEY_ID="k", AWS_SECRET_ACCESS_KEY="s")
    assert s3_config() == ({"region": "us-east-1"}, None)


def test_a_broken_file_is_named_and_not_quoted(files: Files) -> None:
    files(credentials="aws_secret_access_key = hunter2\n")
    with pytest.raises(UsageError, match=r"cannot read the AWS file .*credentials: ") as caught:
        s3_config()
    assert "hunter2" not in str(caught.value)


def test_a_profile_reaches_a_real_server(
    team: str, s3_server: S3Server, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    files(credentials=profile, config="", AWS_PROFILE="colleague")
    location = open_remote_folder(team)
    assert location.put("x", b"1")
    assert SECRET_KEY not in f"{location!r} {vars(location)} {vars(location.bucket)}"
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
