"""The services that hold caches, and what of the environment decides for each: one entry for a URL's scheme.

Messages name these variables, and ``saecache doctor`` says which of them are set, never what they hold.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Service:
    """One kind of store.

    Attributes:
        title: its name, for people.
        endpoint: the variable that says where it is.
        credentials: what to check where the credentials are not accepted.
        login: what to do where there are none.
        variables: any of these gives credentials.
        files: where credentials are kept; the files need not be there.
    """

    title: str
    endpoint: str
    credentials: str
    login: str
    variables: tuple[str, ...]
    files: Callable[[], tuple[Path, ...]] = tuple


def service_of(url: str) -> Service:
    """The service of a URL or of a place below one; S3's where the scheme has none of its own."""
    return SERVICES.get(url.partition("://")[0], SERVICES["s3"])


def aws_credentials_file() -> Path:
    """Where the profiles of AWS have their keys."""
    return Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()


def hugging_face_folder() -> Path:
    """Where the Hugging Face libraries keep their files."""
    named = os.environ.get("HF_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(named) if named else cache / "huggingface"


SERVICES = {
    "s3": Service(
        title="S3",
        endpoint="AWS_ENDPOINT_URL",
        credentials="AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE and the region",
        login="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for public buckets "
        "AWS_SKIP_SIGNATURE=true",
        variables=(
            "AWS_ACCESS_KEY_ID",
            "AWS_PROFILE",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ),
        files=lambda: (aws_credentials_file(),),
    ),
    "gs": Service(
        title="Google Cloud",
        endpoint="GOOGLE_BASE_URL",
        credentials="GOOGLE_APPLICATION_CREDENTIALS",
        login="log in with 'gcloud auth application-default login', or set GOOGLE_APPLICATION_CREDENTIALS to "
        "a key file; for public buckets GOOGLE_SKIP_SIGNATURE=true",
        variables=(
            "GOOGLE_APPLICATION_CREDENTIALS",
            "GOOGLE_SERVICE_ACCOUNT",
            "GOOGLE_SERVICE_ACCOUNT_KEY",
        ),
        files=lambda: (Path("~/.config/gcloud/application_default_credentials.json").expanduser(),),
    ),
    "az": Service(
        title="Azure",
        endpoint="AZURE_STORAGE_ACCOUNT_NAME",
        credentials="AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        login="set AZURE_STORAGE_ACCOUNT_NAME and one of AZURE_STORAGE_ACCOUNT_KEY and "
        "AZURE_STORAGE_SAS_TOKEN, or log in with 'az login' and set AZURE_USE_AZURE_CLI=true; for public "
        "containers AZURE_SKIP_SIGNATURE=true",
        variables=(
            "AZURE_STORAGE_ACCOUNT_KEY",
            "AZURE_STORAGE_SAS_TOKEN",
            "AZURE_STORAGE_TOKEN",
            "AZURE_CLIENT_SECRET",
            "AZURE_FEDERATED_TOKEN_FILE",
            "AZURE_USE_AZURE_CLI",
        ),
    ),
    "hf": Service(
        title="Hugging Face",
        endpoint="HF_ENDPOINT",
        credentials="HF_TOKEN, or log in with 'hf auth login'",
        login="set HF_TOKEN, or log in with 'hf auth login'",
        variables=("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
        files=lambda: (Path(os.environ.get("HF_TOKEN_PATH") or hugging_face_folder() / "token"),),
    ),
}
