"""The language model that a cache or an SAE says it was made with, loaded again and checked by its hashes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from ...common.devices import choose_device
from ...common.errors import UsageError
from ...common.validation import validate
from .adapter import AdapterFiles, locate_adapter
from .config import AdapterConfig, Quantization
from .files import ModelFiles, locate_model_of
from .language_model import LanguageModel
from .loading import Loading, read_model_settings
from .numerics import resolve_dtype

if TYPE_CHECKING:
    from ...store import ActivationCache


def load_model_of(
    cache: "ActivationCache",
    *,
    name: str | None = None,
    adapter: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> LanguageModel:
    """The model that a cache was harvested from, checked by the hashes of its weights and of its adapter.

    Args:
        cache: an open cache.
        name: where the model is now, when it was a local folder that has moved.
        adapter: where its adapter is now, likewise.
        device: where it shall run.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        UsageError: the cache names no model, the model is not there, or its weights are others.
    """
    facts, files = locate_model_of(cache, name=name, trust_remote_code=trust_remote_code)
    known = cache.provenance.get("adapter_folder")
    return load_recorded(
        facts,
        files,
        str(cache.path),
        adapter=adapter,
        known_adapter=None if known is None else str(known),
        device=device,
        trust_remote_code=trust_remote_code,
    )


def load_recorded(
    facts: Mapping[str, Any],
    files: ModelFiles,
    origin: str,
    *,
    adapter: str | None = None,
    known_adapter: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load the model in ``files`` as ``facts`` record it: its number type, quantization and adapter.

    Args:
        facts: the ``model`` of an identity, which may come from anybody; what it lacks is not checked.
        origin: what has these facts, for messages: a cache's path, or an SAE.
        adapter: where the adapter is now.
        known_adapter: the folder where it was.

    Raises:
        UsageError: the weights or the adapter are others than ``facts`` say, or cannot be loaded.
    """
    place, quantization = choose_device(device), facts.get("quantization")
    settings = read_model_settings(files, trust_remote_code=trust_remote_code)
    dtype = resolve_dtype(str(facts.get("dtype", "auto")), place, settings.get_text_config().hidden_size)
    known = get_args(Quantization)
    if quantization is not None and quantization not in known:
        raise UsageError(f"{origin} names quantization {quantization!r:.80}; known: {', '.join(known)}")
    how = Loading(
        quantization=quantization, adapter=_find_adapter(facts, origin, place=adapter, known=known_adapter)
    )
    model = LanguageModel.from_files(
        files, dtype=dtype, device=place, trust_remote_code=trust_remote_code, how=how
    )
    wanted = facts.get("weights_sha256")
    if wanted is not None and model.weights_sha256 != wanted:
        raise UsageError(
            f"{files.place} is not the model of {origin}: its weights have sha256 {model.weights_sha256}, "
            f"expected {wanted!s:.80}"
        )
    return model


def _find_adapter(
    facts: Mapping[str, Any], origin: str, *, place: str | None, known: str | None
) -> AdapterFiles | None:
    """The adapter that ``facts`` name: at ``place``, else where it was.

    Raises:
        UsageError: it is not there, or it is another one.
    """
    recorded = facts.get("adapter")
    if not isinstance(recorded, Mapping):
        if place is not None:
            raise UsageError(f"{origin} was harvested without an adapter: leave out adapter={place!r}")
        return None
    revision = recorded.get("revision") if place is None else None
    config = validate(
        AdapterConfig,
        {
            "name": place or known or str(recorded.get("name")),
            "revision": revision if isinstance(revision, str) else None,
        },
        f"the adapter of {origin}",
    )
    elsewhere = "If it is elsewhere now, give its place as adapter=... (of a command: --adapter)"
    try:
        files = locate_adapter(config)
    except UsageError as error:
        raise UsageError(f"the adapter of {origin} cannot be opened again: {error}. {elsewhere}") from None
    if files.sha256 != recorded.get("sha256"):
        raise UsageError(
            f"{files.folder} is not the adapter of {origin}: it has sha256 {files.sha256}, expected "
            f"{recorded.get('sha256')!s:.80}. {elsewhere}"
        )
    return files
