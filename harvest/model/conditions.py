"""The conditions under which a forward gives the same bits again: compared before a harvest continues."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...common.devices import device_name
from ...common.errors import UsageError
from ...common.versions import software_versions
from .language_model import LanguageModel
from .numerics import cpu_has

_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_QUANTIZERS = {  # method, as transformers calls it -> the package whose kernels compute the forward
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
}

_RESTORED = {  # what decides the last bits of a row -> how to restore it
    "torch": "pip install torch=={}",
    "transformers": "pip install transformers=={}",
    "batch_size": "--set batch_size={}",
    "processor": "continue on such a machine",
    "device": "--set device={}",
    "cuda": "install torch for CUDA {}",
    "attention": "attention is chosen by transformers and the model's config.json",
    "matmul_precision": "torch.set_float32_matmul_precision({!r})",
    "forward_length": "continue with the version of saecache that began it",
} | {name: f"pip install {name}=={{}}" for name in _QUANTIZERS.values()}


def forward_conditions(model: LanguageModel, batch_size: int) -> dict[str, Any]:
    """What decides the last bits of a row besides the identity of its cache. Plain JSON.

    On a CPU each block of sequences is computed by one thread (see :mod:`.forward`), so neither the batch
    size nor the number of threads is among it. On other devices the block is the batch.
    """
    quantizer = _QUANTIZERS.get(model.quantization or "")
    packages = ("torch", "transformers", *([] if quantizer is None else [quantizer]))
    software = software_versions(packages)
    found: dict[str, Any] = {name: software[name] for name in packages if name in software}
    found |= {
        "device": model.device.type,
        "attention": model.attention,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    if model.device.type == "cpu":
        amx = " with AMX" if cpu_has("_is_amx_tile_supported") else ""
        found["processor"] = torch.backends.cpu.get_cpu_capability() + amx
    else:
        names = sorted({device_name(device) for device in model.devices})
        found |= {"processor": ", ".join(names), "batch_size": batch_size}
    if model.device.type == "cuda":
        found["cuda"] = torch.version.cuda or torch.version.hip
    return found


def forward_lengths(cut_padding: bool) -> dict[str, Any]:
    """The condition that says how long forwards are: what :func:`cuts_padding` reads."""
    return {"forward_length": "longest sequence"} if cut_padding else {}


def cuts_padding(conditions: Any) -> bool:
    """Whether forwards under the recorded ``conditions`` are as long as their longest sequence.

    Version 0.2 ran all of them on the whole context.
    """
    return isinstance(conditions, Mapping) and conditions.get("forward_length") == "longest sequence"


def recorded_device(progress: Mapping[str, Any]) -> str | None:
    """The device type that an unfinished harvest ran on, None where nothing was read or nothing says so.

    Version 0.2 recorded a batch size except on a CPU, and no device.
    """
    conditions = progress.get("conditions")
    if not progress.get("tokens") or not isinstance(conditions, Mapping):
        return None
    if "device" in conditions:
        return str(conditions["device"])
    return "cpu" if "processor" in conditions and "batch_size" not in conditions else None


def recorded_attention(progress: Mapping[str, Any]) -> str | None:
    """The implementation of attention that an unfinished harvest runs, if its journal names one of ours.

    A journal may come from anybody, and transformers downloads and runs implementations with other names.
    """
    conditions = progress.get("conditions")
    found = conditions.get("attention") if isinstance(conditions, Mapping) else None
    return found if found in _ATTENTION and progress.get("tokens") else None


def check_conditions(
    there: Mapping[str, Any] | None, here: Mapping[str, Any], dtype: str, path: Path
) -> None:
    """Refuse to continue the harvest in ``path``, begun under the conditions ``there``, under others.

    Version 0.1 recorded none. Its float32 rows did not depend on the number of threads, others did.

    Raises:
        UsageError: with everything that differs, and how to restore it.
    """
    if there is None:
        lines = [] if dtype == "float32" else ["threads: not recorded by version 0.1 there, one a block here"]
    else:
        lines = condition_differences(there, here)
    if lines:
        listed = "\n".join(f"  - {line}" for line in lines)
        raise UsageError(
            f"{path} was begun under other conditions, and its rows would be of two kinds (they differ in "
            f"the last bits):\n{listed}\nrestore them to continue, or remove {path} to start again"
        )


def condition_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Lines that say what differs, each with the setting that restores it."""
    return [
        f"{name}: {value} there, {here.get(name)} here ({_RESTORED[name].format(value)})"
        for name, value in there.items()
        if name in _RESTORED and value != here.get(name)
    ]


def describe_conditions(conditions: Mapping[str, Any] | None) -> str | None:
    """In one line what decides the last bits of a row; None for a harvest of version 0.1."""
    if conditions is None:
        return None
    return ", ".join(f"{name} {conditions[name]}" for name in _RESTORED if name in conditions)
