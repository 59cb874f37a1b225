"""sparsify folders: ``<hookpoint>/cfg.json`` and ``sae.safetensors``. TopK only.

Read in eai-sparsify 1.3.3 (sparse_coder.py). The config does not name the hook: its folder does.
"""

from pathlib import Path

from torch import device as Device  # noqa: N812

from ...common.errors import UsageError
from ...store.normalization import Normalizer
from ...store.untrusted_files import read_object
from ..sae import SAE
from ..variants.topk import TopK
from .building import Origin, build_sae, text_or_none, whole_number
from .hook_names import from_module
from .tensor_files import Layout, open_tensors, read_parts

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae.safetensors"
RUN_FILE = "config.json"  # of the run, in the folder above
_TENSORS: dict[str, tuple[str, Layout]] = {
    "W_enc": ("encoder.weight", "FD"),
    "b_enc": ("encoder.bias", "F"),
    "W_dec": ("W_dec", "FD"),
    "b_dec": ("b_dec", "D"),
}


def from_sparsify(path: str | Path, *, hook: str | None = None, device: str | Device = "cpu") -> SAE:
    """The SAE of one hook point of a sparsify run.

    Args:
        hook: the hook in our words; by default what the folder's name says, as ``layers.3`` or ``h.3.mlp``.

    Raises:
        UsageError: no SAE of sparsify, damaged files, or something that has no counterpart here.
    """
    folder = Path(path)
    config = read_object(folder / CONFIG_FILE, "copy the SAE again from where it was saved")
    activation = config.get("activation", "topk")
    if activation != "topk" or config.get("signed"):
        raise UsageError(
            f"{folder} selects by {activation!r:.80}{', signed' if config.get('signed') else ''}, which has "
            "no counterpart here; topk without signs has one"
        )
    if config.get("transcode") or config.get("skip_connection"):
        raise UsageError(f"{folder} is a transcoder: its output is another activation than its input")
    file = open_tensors(folder / WEIGHTS_FILE)
    d_model = whole_number(config, "d_in", folder / CONFIG_FILE)
    if config.get("num_latents"):
        num_latents = whole_number(config, "num_latents", folder / CONFIG_FILE)
    else:
        num_latents = d_model * whole_number(config, "expansion_factor", folder / CONFIG_FILE)
    k = whole_number(config, "k", folder / CONFIG_FILE, num_latents)
    parts = read_parts(file, _TENSORS, d_model=d_model, num_latents=num_latents)
    origin = Origin(
        format="sparsify",
        architecture="SparseCoder",
        hook=hook or from_module(folder.absolute().name),
        model=_model_of(folder.absolute().parent / RUN_FILE),
        facts={},
    )
    variant = TopK(num_latents=num_latents, k=k)
    return build_sae(variant, parts, Normalizer("none", d_model), origin, file).to(device)


def _model_of(path: Path) -> str | None:
    try:
        return text_or_none(read_object(path, "remove it: only the model's name is read from it"), "model")
    except FileNotFoundError:
        return None
