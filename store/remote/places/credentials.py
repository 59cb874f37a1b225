"""Credentials, region and endpoint of S3, as the AWS tools find them: environment first, then profiles.

The object store library reads keys, tokens, web identity, container and instance roles from the environment.
Profiles (keys, SSO, roles, ``credential_process``) are read by boto3, which ``saecache[aws]`` installs.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....common.errors import UsageError
from .services import aws_credentials_file

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Config

_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)


def s3_config() -> "tuple[S3Config, Boto3CredentialProvider | None]":
    """(settings that the library does not find itself, what provides the credentials of a profile or None).

    Raises:
        UsageError: ``AWS_PROFILE`` names a profile that is absent or unusable, a file is malformed, or boto3
            is needed and not installed.
    """
    name = _first("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
    needs_credentials = bool(name) or not _first(*_CREDENTIALS)
    endpoint = _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    region = _first("AWS_REGION", "AWS_DEFAULT_REGION")
    provider = None
    if needs_credentials or not region or not endpoint:
        session = _open_profile(name, required=needs_credentials)
        if session is not None:
            endpoint = endpoint or _profile_endpoint(session)
            region = region or session.get_config_variable("region")
            provider = _find_credentials(session, name) if needs_credentials else None
    config: S3Config = {"region": region or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint.rstrip("/")
    return config, provider


def _open_profile(name: str | None, *, required: bool) -> Any:
    """The botocore session of a profile (``default`` unless named); None where there is none."""
    credentials = aws_credentials_file()
    config = Path(_first("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
    if not name and not credentials.is_file() and not config.is_file():
        return None
    try:
        import boto3  # noqa: F401 - what the provider of the credentials needs; botocore comes with it
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        if not required or not (name or credentials.is_file()):
            return None
        raise UsageError(
            f"reading the AWS profile {name or 'default'!r} needs boto3: pip install boto3 (or "
            "'saecache[aws]'), or export keys with 'aws configure export-credentials'"
        ) from None
    try:
        session = Session(profile=name)
        known = session.available_profiles
    except (BotoCoreError, OSError, ValueError) as error:
        # not its message: it may quote lines of the file
        broken = getattr(error, "kwargs", {}).get("path") or f"{credentials} or {config}"
        raise UsageError(f"cannot read the AWS file {broken}: {type(error).__name__}") from None
    if name and name not in known:
        raise UsageError(
            f"AWS_PROFILE is {name!r}, but the AWS configuration files have only "
            f"{', '.join(sorted(known)) or 'no profiles'}"
        )
    return session


def _profile_endpoint(session: Any) -> str | None:
    """``endpoint_url`` of a profile: the one of its services section for S3, else its own."""
    profile = session.get_scoped_config()
    services = session.full_config.get("services", {}).get(profile.get("services"), {})
    found: str | None = services.get("s3", {}).get("endpoint_url") or profile.get("endpoint_url")
    return found


def _find_credentials(session: Any, name: str | None) -> "Boto3CredentialProvider | None":
    """What provides the credentials of a profile; None lets the library look for a role of the machine."""
    label = name or "default"
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        if session.get_credentials() is None:
            if not name:
                return None
            raise UsageError(
                f"the AWS profile {name!r} holds no credentials: add aws_access_key_id and "
                "aws_secret_access_key to it, or unset AWS_PROFILE"
            )
        provider = Boto3CredentialProvider(session)
        provider()  # a session that has expired is reported at once
    except (BotoCoreError, OSError) as error:
        raise UsageError(
            f"the credentials of the AWS profile {label!r} cannot be read "
            f"({type(error).__name__}): renew them, for SSO with 'aws sso login --profile {label}'"
        ) from None
    return provider


def _first(*variables: str) -> str | None:
    """The first of these variables of the environment that is set."""
    return next((value for name in variables if (value := os.environ.get(name))), None)
