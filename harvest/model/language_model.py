"""A language model to read activations from, and to run with activations replaced."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from ...common.devices import choose_device
from ...common.errors import UsageError
from .adapter import locate_adapter
from .config import AdapterConfig, DeviceMap, Quantization
from .files import ModelFiles, fetch_weights, locate_model, weights_sha256
from .hook_points import HookPoint, resolve_hook
from .hook_probe import HookOutput, probe_hooks
from .hooks import read_hooks, replaced
from .loading import (
    Loading,
    length_matters_of,
    load_weights,
    max_positions_of,
    num_layers_of,
    read_model_settings,
)
from .numerics import DTYPES, resolve_dtype
from .resumed import CHECKED_POSITIONS, RememberedBlocks, blocks_before, can_resume
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    pass


class LanguageModel:
    """An ``AutoModelForCausalLM`` in evaluation mode. Token ids are int [n, T]; negative ids are padding at
    the end of a sequence, which causal attention keeps from every position before it.

    ``length_matters`` says whether activations depend on the number of positions all the same.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, name: str, revision: str | None, weights_sha256: str
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self.weights_sha256 = weights_sha256
        self.num_layers = num_layers_of(model.config)
        self.max_positions = max_positions_of(model.config)
        self.length_matters = length_matters_of(model.config)
        self._outputs: dict[str, HookOutput] = {}
        self._resumes: dict[int, bool] = {}  # number of first blocks -> whether a forward can go without

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        trust_remote_code: bool = False,
        device_map: DeviceMap | None = None,
        quantization: Quantization | None = None,
        adapter: AdapterConfig | None = None,
    ) -> Self:
        """Load by hub name, local folder, GGUF file, ``package:<package>/<path>`` or ``builtin:demo``.

        Pickled weights are not loaded.

        Raises:
            UsageError: no such model, or weights that do not fit it.
        """
        files = locate_model(name, revision, trust_remote_code=trust_remote_code)
        settings = read_model_settings(files, trust_remote_code=trust_remote_code)
        place = choose_device(device)
        dtype = resolve_dtype(dtype, place, settings.get_text_config().hidden_size)
        how = Loading(
            device_map=device_map,
            quantization=quantization,
            adapter=None if adapter is None else locate_adapter(adapter),
        )
        return cls.from_files(files, dtype=dtype, device=place, trust_remote_code=trust_remote_code, how=how)

    @classmethod
    def from_files(
        cls,
        files: ModelFiles,
        *,
        dtype: str,
        device: torch.device,
        trust_remote_code: bool = False,
        sha256: str | None = None,
        tokenizer: Any = None,
        how: Loading = Loading(),  # noqa: B008 - frozen
    ) -> Self:
        """Load located files. ``sha256`` and ``tokenizer`` save doing again what was done already."""
        paths = fetch_weights(files)
        return cls(
            load_weights(files, DTYPES[dtype], device, trust_remote_code, how),
            tokenizer or load_tokenizer(files, trust_remote_code=trust_remote_code),
            name=files.name,
            revision=files.revision,
            weights_sha256=sha256 or weights_sha256(paths),
        )

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the first weights that are kept on one."""
        devices = (p.device for p in self.model.parameters() if p.device.type != "meta")
        return next(devices, torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the forward; quantized weights are integers."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def attention(self) -> str | None:
        """Which implementation of attention transformers runs (``sdpa``, ``eager``, ...)."""
        found = getattr(self.model.config, "_attn_implementation", None)
        return None if found is None else str(found)

    @property
    def devices(self) -> list[torch.device]:
        """All devices that hold weights, sorted by name."""
        found = {p.device for p in self.model.parameters() if p.device.type != "meta"} or {self.device}
        return sorted(found, key=str)

    @property
    def quantization(self) -> str | None:
        """The method by which weights are kept in fewer bits, as transformers calls it; None without one."""
        settings = getattr(self.model.config, "quantization_config", None)
        method = (
            settings.get("quant_method")
            if isinstance(settings, dict)
            else getattr(settings, "quant_method", None)
        )
        return None if method is None else str(getattr(method, "value", method))

    @property
    def vocabulary(self) -> int:
        """Token ids that the model embeds: 0 up to one less than this."""
        return int(self.model.get_input_embeddings().num_embeddings)  # type: ignore[operator]

    def d_model(self, hook: str) -> int:
        """Width of ``hook``.

        Raises:
            UsageError: no such hook, or one that gives no activations.
        """
        return self.widths([hook])[hook]

    def widths(self, hooks: Iterable[str]) -> dict[str, int]:
        """Width of each hook. Errors as :meth:`d_model`."""
        return {hook: output.width for hook, output in self.outputs(hooks).items()}

    def outputs(self, hooks: Iterable[str]) -> dict[str, HookOutput]:
        """What each hook gives; all are checked with one small forward. Errors as :meth:`d_model`."""
        hooks = list(hooks)
        if any(hook not in self._outputs for hook in hooks):
            points = self._points(hooks)
            with torch.no_grad():
                found = probe_hooks(
                    self.model,
                    points,
                    lambda ids: self._forward(ids, points),
                    num_layers=self.num_layers,
                    model_name=self.name,
                    max_positions=self.max_positions,
                    device=self.device,
                )
            self._outputs.update(found)
        return {hook: self._outputs[hook] for hook in hooks}

    def logits(self, ids: Any) -> torch.Tensor:
        """Next-token logits [n, T, V]."""
        with torch.no_grad():
            logits: torch.Tensor = self.model(input_ids=self._ids(ids), use_cache=False).logits
            return logits

    def logits_with(
        self, ids: Any, hook: str, replace: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Next-token logits [n, T, V] when the activation [n, T, D] at ``hook`` is replaced."""
        prepared = self._ids(ids)
        with torch.no_grad(), replaced(self.model, self._points([hook])[0], replace, prepared.shape):
            logits: torch.Tensor = self.model(input_ids=prepared, use_cache=False).logits
            return logits

    def resumed_at(
        self, ids: Any, hook: str
    ) -> Callable[[Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]:
        """:meth:`logits_with` of these ``ids`` and ``hook``, as a function of ``replace``.

        From its second call on it does not run the blocks before the hook, and gives the same bits. Only one
        thread may use the model then.
        """
        prepared, (point,) = self._ids(ids), self._points([hook])
        blocks = blocks_before(self.model, point, self.num_layers)
        if len(blocks) not in self._resumes:
            few = prepared[:1, :CHECKED_POSITIONS]
            self._resumes[len(blocks)] = bool(blocks) and can_resume(blocks, lambda: self.logits(few))
        if not self._resumes[len(blocks)]:
            return lambda replace: self.logits_with(ids, hook, replace)
        remembered = RememberedBlocks(blocks)

        def logits(replace: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            with remembered.skipping() if remembered.is_known else remembered.remembering():
                return self.logits_with(prepared, hook, replace)

        return logits

    def activations(self, ids: Any, hooks: Iterable[str]) -> dict[str, torch.Tensor]:
        """Activations [n, T, D] at each hook, from one forward that stops after the last of them."""
        found: dict[str, torch.Tensor] = {}

        def receive(name: str, x: torch.Tensor) -> None:
            found[name] = x.clone()

        self.read(ids, hooks, receive)
        return found

    def read(self, ids: Any, hooks: Iterable[str], receive: Callable[[str, torch.Tensor], None]) -> None:
        """Hand the activation [n, T, D] of each hook to ``receive(hook, x)``, which copies what it keeps.

        One forward, which stops after the last hook. Several threads may call this at once.
        """
        points = self._points(hooks)
        with torch.no_grad():
            prepared = self._ids(ids)
            read_hooks(lambda: self._forward(prepared, points), self.model, points, receive, prepared.shape)

    def _points(self, hooks: Iterable[str]) -> list[HookPoint]:
        return [resolve_hook(self.model, hook, self.num_layers, self.name) for hook in hooks]

    def _forward(self, ids: torch.Tensor, points: list[HookPoint]) -> object:
        """Without the output head, unless a hook is in it."""
        base = self.model.base_model
        inside = set(base.modules())  # type: ignore[union-attr]
        only_base = all(self.model.get_submodule(point.module_path) in inside for point in points)
        return (base if only_base else self.model)(input_ids=ids, use_cache=False)  # type: ignore[operator]

    def _ids(self, ids: Any) -> torch.Tensor:
        tensor = torch.as_tensor(ids, device=self.device).long()
        if tensor.ndim != 2:
            raise UsageError(f"token ids: expected shape [sequences, positions], got {tuple(tensor.shape)}")
        if self.max_positions is not None and tensor.shape[1] > self.max_positions:
            raise UsageError(
                f"{tensor.shape[1]} positions are more than the {self.max_positions} of {self.name}"
            )
        return tensor.clamp(min=0)
