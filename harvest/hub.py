"""The Hugging Face hub: model files to this machine, the commit of a dataset, and its errors in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..common.errors import UsageError


def network_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a failed look-up or download; each version of huggingface_hub has its HTTP library."""
    from huggingface_hub import errors

    http_error = getattr(errors, "HTTPError", None)
    return (OSError,) if http_error is None else (OSError, http_error)


def download_model_files(name: str, revision: str | None, patterns: list[str]) -> Path:
    """Folder with those files of the model that match one of ``patterns``.

    Raises:
        UsageError: no such model or revision, no access, or no connection.
    """
    from huggingface_hub import snapshot_download

    with _explained(
        f"model {name}",
        revision,
        absent=f"no model {name!r}: it is neither a folder here nor on the hub (or it is private and you "
        "are not logged in)",
        failed=f"cannot download model {name!r}",
    ):
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def resolve_commit(dataset: str, revision: str | None) -> str:
    """The commit that ``revision`` (None: the default branch) of a dataset stands for now.

    Raises:
        UsageError: no such dataset or revision, no access, or no connection.
    """
    from huggingface_hub import HfApi

    with _explained(
        f"dataset {dataset}",
        revision,
        absent=f"the hub has no dataset {dataset!r} (or it is private and you are not logged in); "
        "for local files set text.kind=files",
        failed=f"cannot look up dataset {dataset!r} on the hub",
    ):
        commit = HfApi().dataset_info(dataset, revision=revision).sha
    if commit is None:
        raise UsageError(f"the hub states no commit for dataset {dataset!r}, revision {revision!r}")
    return str(commit)


@contextmanager
def _explained(what: str, revision: str | None, *, absent: str, failed: str) -> Iterator[None]:
    """The hub's exceptions as UsageErrors: ``absent`` when there is no such thing, else ``failed``."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise UsageError(
            f"{what}: access must be asked for on the hub; then log in ('hf auth login')"
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"{what} has no revision {revision!r}") from None
    except (RepositoryNotFoundError, HFValidationError, UnicodeEncodeError):
        raise UsageError(absent) from None
    except LocalEntryNotFoundError:
        kind, _, name = what.partition(" ")
        raise UsageError(
            f"{kind} {name!r} is neither a folder here nor downloaded, and the hub cannot be reached"
        ) from None
    except network_errors() as error:
        raise UsageError(f"{failed}: {error}") from None
