"""From files to an SAE: ours, and those of other libraries. The files may come from anybody."""

from pathlib import Path

import torch

from ..common.devices import choose_device
from ..common.errors import UsageError
from ..common.lookups import exists, is_folder
from ..common.memory import check_memory
from ..common.printable import is_name_of_file
from ..common.validation import validate
from ..store.untrusted_files import read_object
from .foreign.formats import FORMATS, find_format, load_foreign
from .foreign.hub import find_folder
from .latent_shards import LatentShards
from .layer_blocks import LayerBlocks
from .sae import CONFIG_FILE, SAE, SAE_FOLDER, THRESHOLD, WEIGHTS_FILE
from .sae_config import FORMAT_OF_SEVERAL_HOOKS, FORMAT_VERSION, SAEConfig, tensor_shapes
from .sae_hooks import check_hooks
from .tensor_file import TensorInfo, check_header, check_values, read_tensors
from .variants import VARIANTS
from .variants.base.variant import Plan


def find_saes(place: str | Path) -> list[Path]:
    """The SAE folders that a folder stands for: itself, a variant's ``sae``, or every one of a run.

    The SAE at a URL (``hf://ORG/NAME[@REVISION][/FOLDER]``, or of a bucket) is downloaded once.

    Raises:
        UsageError: it is none of these.
    """
    folder = find_folder(place)
    if find_format(folder) is not None:
        return [folder]
    there = is_folder(folder)
    for pattern in ("", f"{SAE_FOLDER}/", f"*/{SAE_FOLDER}/") if there else ():
        if found := sorted(path.parent for path in folder.glob(pattern + CONFIG_FILE)):
            return found
    what = f"it has no {CONFIG_FILE}" if there else "there is no such folder"
    raise UsageError(
        f"no SAE in {folder}: {what}; expected an SAE folder (with {CONFIG_FILE} and {WEIGHTS_FILE}), a "
        f"run folder (with NAME/{SAE_FOLDER}/{CONFIG_FILE}), or a folder of {', '.join(FORMATS)}"
    )


def find_sae(place: str | Path) -> Path:
    """The folder of the one SAE that a folder stands for, as :func:`find_saes` finds them.

    Raises:
        UsageError: there is none, or there are several.
    """
    found = find_saes(place)
    if len(found) > 1:
        raise UsageError(f"{place} holds {len(found)} SAEs, name one of them: {', '.join(map(str, found))}")
    return found[0]


def load_sae(folder: str | Path, device: str | torch.device = "cpu") -> SAE:
    """The SAE in ``folder``: a run's ``<variant>/sae``, a checkpoint, or a run folder with one SAE in it.

    Folders of SAELens, dictionary_learning, sparsify, Gemma Scope and Llama Scope are loaded as well
    (:mod:`.foreign`). A URL (``hf://ORG/NAME[@REVISION][/FOLDER]``, or of a bucket) is downloaded once. The
    files may come from anybody: no tensor is read before its type and shape were found to be right.

    Raises:
        UsageError: no SAE there or several, an unknown kind, a newer format, a config that contradicts
            itself, or weights that contradict the config, are not finite, or do not fit into memory; a
            ``device`` that this machine does not have (``auto`` takes the fastest that is there).
    """
    device = choose_device(str(device))
    folder = find_sae(folder)
    weights = folder / WEIGHTS_FILE
    if not exists(weights):
        if (foreign := load_foreign(folder, device)) is not None:
            return foreign
        raise UsageError(f"no SAE in {folder}: expected {CONFIG_FILE} and {WEIGHTS_FILE} there")
    try:
        cfg = _read_config(folder)
        expected = _expected_tensors(cfg)
        check_header(weights, expected)
        check_memory(weights.stat().st_size, torch.device(device), f"{weights}", "use another machine")
        tensors = read_tensors(weights, device)
    except (UsageError, FileNotFoundError) as error:
        raise UsageError(f"{folder} does not hold a readable SAE: {error}") from None
    for name, tensor in tensors.items():
        check_values(f"{weights}: tensor {name}", tensor, cfg.num_latents, unbounded=name == THRESHOLD)
    blocks = LayerBlocks(cfg.num_layers, LatentShards.divide(cfg.num_latents))
    if any(bool(part.any()) for part in blocks.unwritten(tensors["W_dec"])):
        raise UsageError(f"{weights}: a latent writes to a layer before its own: its weights are damaged")
    return SAE(cfg, tensors)


def _read_config(folder: Path) -> SAEConfig:
    path = folder / CONFIG_FILE
    values = read_object(path, "copy the SAE again from where it was trained")
    version = values.get("format_version")
    if version not in (FORMAT_VERSION, FORMAT_OF_SEVERAL_HOOKS):
        raise UsageError(
            f"SAE format {version!r:.80}; this version of saecache reads {FORMAT_VERSION} and "
            f"{FORMAT_OF_SEVERAL_HOOKS}"
        )
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in VARIANTS:
        raise UsageError(
            f"SAE of kind {kind!r:.80}, which this version of saecache does not know; it knows "
            f"{', '.join(VARIANTS)}. The kind's file belongs into train/variants/"
        )
    cfg = validate(SAEConfig, values, str(path))
    if not cfg.hook.isprintable():  # is shown in a terminal
        raise UsageError(f"{path}: hook holds characters that cannot be shown: {cfg.hook!r:.80}")
    if not is_name_of_file(cfg.name):  # is shown as well, and exports name folders after it
        raise UsageError(
            f"{path}: name={cfg.name!r:.80} cannot be the name of an SAE: expected one that a folder can "
            "have, without / and \\; change it in the file"
        )
    try:
        check_hooks(cfg)
    except UsageError as error:
        raise UsageError(f"{path} contradicts itself: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{path}: normalization cannot be read ({error!r:.80})") from None
    for name, got, wanted in (
        ("kind", cfg.kind, cfg.variant.kind),
        ("inference", cfg.inference, cfg.variant.inference),
        ("normalization.d_model", cfg.normalization.get("d_model"), cfg.d_model),
    ):
        if got != wanted:
            raise UsageError(
                f"{path} contradicts itself: {name} is {got!r:.80}, and the rest says {wanted!r}"
            )
    for name in ("k", "num_latents"):
        got = getattr(cfg.variant, name, None)
        if got is not None and got > cfg.num_latents:
            raise UsageError(f"{path} contradicts itself: {name}={got} of {cfg.num_latents} latents")
    return cfg


def _expected_tensors(cfg: SAEConfig) -> dict[str, TensorInfo | tuple[TensorInfo, ...]]:
    """The types and shapes of an SAE's tensors; nothing is allocated for them."""
    plan = Plan(d_model=cfg.d_model, num_latents=cfg.num_latents, batch_rows=1, num_steps=1)
    expected: dict[str, TensorInfo | tuple[TensorInfo, ...]] = {
        name: TensorInfo(torch.float32, shape) for name, shape in tensor_shapes(cfg, cfg.num_latents).items()
    }
    with torch.device("meta"):
        own = {
            **cfg.variant.extra_parameters(plan),
            **cfg.variant.inference_tensors(cfg.variant.initial_state(plan)),
        }
    expected |= {name: TensorInfo.of(tensor) for name, tensor in own.items()}
    if THRESHOLD in expected:
        each = TensorInfo(torch.float32, (cfg.num_latents,))
        expected[THRESHOLD] = (TensorInfo(torch.float32, ()), each)
    return expected
