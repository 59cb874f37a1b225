"""Credentials, region and endpoint of S3, as the AWS tools find them: environment first, then profile files.

Object stores read most of the environment themselves (keys, tokens, web identity, container and instance
roles); what they do not read are the profile files. Profiles that need a helper (SSO, assumed roles,
``credential_process``) go through boto3 where it is installed.
"""

import configparser
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import UsageError

if TYPE_CHECKING:
    from obstore.store import S3Config

_NEEDS_BOTO3 = ("role_arn", "sso_session", "sso_start_url", "credential_process", "web_identity_token_file")
_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}


def s3_config(environ: Mapping[str, str] | None = None) -> "tuple[S3Config, Any]":
    """(settings that the environment alone does not give, a credential provider or None).

    Raises:
        UsageError: ``AWS_PROFILE`` names a profile that is absent or needs boto3; a file is malformed.
    """
    environ = os.environ if environ is None else environ
    profile_name = environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE")
    profile = _profile(environ, profile_name)
    config: dict[str, str] = {}
    endpoint = (
        environ.get("AWS_ENDPOINT_URL_S3")
        or environ.get("AWS_ENDPOINT_URL")
        or environ.get("AWS_ENDPOINT")
        or profile.get("services.s3.endpoint_url")
        or profile.get("endpoint_url")
    )
    if endpoint:
        config["endpoint"] = endpoint.rstrip("/")
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or profile.get("region")
    config["region"] = region or "us-east-1"
    provider = None
    if profile_name or not _environment_has_credentials(environ):
        if "aws_access_key_id" in profile and "aws_secret_access_key" in profile:
            config |= {name: profile[key] for key, name in _KEYS.items() if key in profile}
        elif any(key in profile for key in _NEEDS_BOTO3):
            provider = _boto3_provider(profile_name)
        elif profile_name and not _environment_has_credentials(environ):
            raise UsageError(
                f"the AWS profile {profile_name!r} holds no credentials: add aws_access_key_id and "
                "aws_secret_access_key to it, or unset AWS_PROFILE"
            )
    return config, provider  # type: ignore[return-value]


def _environment_has_credentials(environ: Mapping[str, str]) -> bool:
    return any(
        environ.get(name)
        for name in (
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_SKIP_SIGNATURE",
        )
    )


def _profile(environ: Mapping[str, str], name: str | None) -> dict[str, str]:
    """Everything the two files say about a profile (``default`` unless named); {} where there is none."""
    home = Path(environ.get("HOME") or Path.home()) / ".aws"
    config = _read(Path(environ.get("AWS_CONFIG_FILE") or home / "config"))
    credentials = _read(Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"))
    wanted = name or "default"
    found: dict[str, str] = {}
    known = set(credentials.sections())
    for section in config.sections():
        label = section.removeprefix("profile ").strip()
        if section == "default" or section.startswith("profile "):
            known.add(label)
            if label == wanted:
                found |= config[section]
    if wanted in credentials:
        found |= credentials[wanted]
    if name and wanted not in known:
        raise UsageError(
            f"AWS_PROFILE is {name!r}, but the AWS configuration files have only "
            f"{', '.join(sorted(known)) or 'no profiles'}"
        )
    services = f"services {found.get('services', '')}"
    if services in config:
        for line in config[services].get("s3", "").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "endpoint_url":
                found["services.s3.endpoint_url"] = value.strip()
    return found


def _read(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, default_section="\0", strict=False)
    try:
        parser.read_string(path.expanduser().read_text("utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, configparser.Error) as error:
        # not the parser's message: it quotes lines of the file
        raise UsageError(f"cannot read the AWS file {path}: {type(error).__name__}") from None
    return parser


def _boto3_provider(profile_name: str | None) -> Any:
    try:
        from boto3.session import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise UsageError(
            f"the AWS profile {profile_name or 'default'!r} uses SSO, a role or a credential process, "
            "which needs boto3: pip install boto3, or export keys with 'aws configure export-credentials'"
        ) from None
    return Boto3CredentialProvider(Session(profile_name=profile_name))
