"""A transformers model: its configuration before the weights, then the weights, with errors in words."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from typing import Any

import torch
from torch import nn

from ...common.errors import UsageError
from ...store.layout import MAX_WIDTH
from ...store.untrusted_model import files_explained
from .adapter import AdapterFiles, put_in
from .config import DeviceMap, Quantization
from .files import ModelFiles, check_small_files
from .hook_points import check_layers

_MOST_LAYERS = 10_000  # a model is built, block by block, before its weights are compared with it


def read_model_settings(files: ModelFiles, *, trust_remote_code: bool = False) -> Any:
    """The model's own configuration (a transformers config).

    Raises:
        UsageError: transformers cannot read it.
    """
    from transformers import AutoConfig

    check_small_files(files)
    part = "config.json" if files.gguf_file is None else "metadata"
    with files_explained(f"model {files.name!r}: its {part} cannot be used", f": {files.place}"):
        settings = AutoConfig.from_pretrained(
            files.folder, trust_remote_code=trust_remote_code, **files.source
        )
        layers, width = num_layers_of(settings), settings.get_text_config().hidden_size
        max_positions_of(settings)
        if not 0 < layers <= _MOST_LAYERS or not isinstance(width, int) or not 0 < width <= MAX_WIDTH:
            raise ValueError(f"{layers} layers of width {width!r}")
    return settings


def num_layers_of(settings: Any) -> int:
    """Number of decoder blocks that a transformers config states."""
    return int(settings.get_text_config().num_hidden_layers)


def max_positions_of(settings: Any) -> int | None:
    """Longest sequence that a transformers config states, None when it states none."""
    found = getattr(settings.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def length_matters_of(settings: Any) -> bool:
    """Whether activations at a position depend on how many follow it.

    Rotary embeddings may be scaled by the length of the sequence; and code that comes with a model may do
    anything. ``settings`` is a transformers config.
    """
    if type(settings).__module__.startswith("transformers_modules"):
        return True
    text = settings.get_text_config()
    scaling = [getattr(text, name, None) for name in ("rope_parameters", "rope_scaling")]
    # Some models have one for each kind of layer.
    scaling += [each for one in scaling if isinstance(one, dict) for each in one.values()]
    kinds = {each.get("rope_type", each.get("type")) for each in scaling if isinstance(each, dict)}
    return any("dynamic" in kind or kind == "longrope" for kind in map(str, kinds))


def check_model(files: ModelFiles, settings: Any, hooks: Iterable[str], context: int) -> None:
    """Check the hooks and the context before the weights are there.

    Raises:
        UsageError: a block beyond the model, or a context longer than the model's.
    """
    check_layers(hooks, num_layers_of(settings), files.name)
    longest = max_positions_of(settings)
    if longest is not None and context > longest:
        raise UsageError(
            f"tokens.context={context} is longer than the {longest} positions of {files.name}; lower it"
        )


@dataclass(frozen=True)
class Loading:
    """How weights are loaded: what ``from_pretrained`` of transformers gets besides their type, and the
    adapter that is put into them."""

    device_map: DeviceMap | None = None  # None: all of the model is on one device
    quantization: Quantization | None = None  # None: as the weights are saved
    attention: str | None = None  # None: what transformers prefers
    adapter: AdapterFiles | None = None

    def arguments(self, device: torch.device, *, saved_quantized: bool) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained``.

        Raises:
            UsageError: a package is missing.
        """
        found: dict[str, Any] = {}
        if self.attention is not None:
            found["attn_implementation"] = self.attention
        if self.quantization is not None:
            from transformers import BitsAndBytesConfig

            if saved_quantized:
                raise UsageError(
                    f"model.quantization={self.quantization}, but the model is saved quantized: leave it out"
                )
            _need(f"model.quantization={self.quantization}", "bitsandbytes", "accelerate")
            found["quantization_config"] = BitsAndBytesConfig(**{f"load_in_{self.quantization}": True})
        if self.device_map is not None:
            _need("device_map", "accelerate")
            found["device_map"] = self.device_map
        elif saved_quantized or self.quantization is not None:  # such weights cannot be moved afterwards
            _need("a quantized model", "accelerate")
            found["device_map"] = {"": device}
        return found


def _need(what: str, *packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UsageError(f"{what}: transformers needs 'pip install {' '.join(missing)}' for it")


def load_weights(
    files: ModelFiles, dtype: torch.dtype, device: torch.device, trust_remote_code: bool, how: Loading
) -> nn.Module:
    """The model, in evaluation mode, without gradients; on ``device`` unless it is spread over several.

    Raises:
        UsageError: the weights cannot be read, or do not fit the configuration.
    """
    from transformers import AutoModelForCausalLM

    kind: dict[str, Any] = files.source or {"use_safetensors": True}
    settings = read_model_settings(files, trust_remote_code=trust_remote_code)
    saved_quantized = getattr(settings, "quantization_config", None) is not None
    placed = how.arguments(device, saved_quantized=saved_quantized)
    with files_explained(f"model {files.name!r} ({files.place}) cannot be loaded"), _no_bars_in_logs():
        model, info = AutoModelForCausalLM.from_pretrained(
            files.folder,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **kind,
            **placed,
        )
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:  # transformers fills such weights with random numbers and goes on
        raise UsageError(
            f"the weights of model {files.name!r} do not fit its config.json; {len(wrong)} are missing "
            f"or of another shape, such as {', '.join(wrong[:3])}"
        )
    loaded: nn.Module = model if "device_map" in placed else model.to(device)
    if how.adapter is not None:
        loaded = put_in(loaded, how.adapter, quantized=saved_quantized or how.quantization is not None)
    return loaded.eval().requires_grad_(False)


@contextmanager
def _no_bars_in_logs() -> Iterator[None]:
    """Without a terminal transformers draws no bars: each update would be a line of a log.

    Its bar over the tensors of a GGUF file has no switch, so what is written to stderr is dropped.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if sys.stderr.isatty():
        yield
        return
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
