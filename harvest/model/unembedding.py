"""The last step of a language model, from the residual stream to logits: final norm and output weights.

The norm is found by what it does, not by its name: it is the module whose output the output weights read. Its
weight is found so too, because some architectures store the weight less one. Legend: V vocabulary, D width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...common.errors import UsageError

if TYPE_CHECKING:
    from .language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Unembedding:
    """Output weights with the weight of the final norm multiplied in.

    Attributes:
        weight: float32 [V, D].
        centers: whether the norm subtracts the mean over the coordinates, as a layer norm does.
        norm: what the norm is called in the model, for people.
    """

    weight: Tensor
    centers: bool
    norm: str


@torch.no_grad()
def read_unembedding(model: "LanguageModel") -> Unembedding:
    """Read the final norm and the output weights of a model.

    Raises:
        UsageError: the model has no output weights, or they are not a matrix of numbers.
    """
    head = model.model.get_output_embeddings()  # type: ignore[operator]
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise UsageError(f"{model.name} has no output weights that can be read as a matrix of numbers")
    weight_VD = weight.detach().float().cpu()
    name, norm = _find_norm(model, head)
    if norm is None:
        return Unembedding(weight=weight_VD, centers=False, norm="no final norm")
    gain_D, centers = _probe(norm, weight_VD.shape[1], weight.device, weight.dtype)
    return Unembedding(weight=weight_VD * gain_D, centers=centers, norm=f"the final norm {name}")


def _find_norm(model: "LanguageModel", head: nn.Module) -> tuple[str, nn.Module | None]:
    """The module that is called like a norm and whose output ``head`` reads; none if there is no such one."""
    outputs: list[tuple[str, nn.Module, Any]] = []
    read: list[Tensor] = []

    def record(name: str) -> Any:
        return lambda module, _, output: outputs.append((name, module, output))

    handles = [head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))]
    for name, module in model.model.named_modules():
        if "norm" in type(module).__name__.lower():
            handles.append(module.register_forward_hook(record(name)))
    try:
        model.logits(torch.tensor([[0, 1]]))
    finally:
        for handle in handles:
            handle.remove()
    for name, module, output in reversed(outputs):
        if isinstance(output, Tensor) and read and output.shape == read[-1].shape and output.equal(read[-1]):
            return name, module
    return "", None


def _probe(norm: nn.Module, width: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """The weight [D] by which a norm multiplies, and whether it subtracts the mean.

    A vector of mean 0 leaves every kind of norm as itself over its root mean square, times the weight, plus
    the bias. Half the difference of its image and that of its opposite is free of the bias.
    """
    vector = torch.ones(width, device=device, dtype=dtype)
    vector[1::2] = -1
    if width % 2:
        vector[-3:] = torch.tensor([1, 1, -2])
    images = [norm((sign * vector)[None, None])[0, 0].float() for sign in (1, -1)]
    gain = (images[0] - images[1]) / 2 / vector.float() * vector.float().square().mean().sqrt()
    shifted = norm((vector + 3)[None, None])[0, 0].float()
    slack = 1e-3 + 0.05 * float(gain.abs().mean())
    return gain.cpu(), bool(torch.allclose(shifted, images[0], rtol=0.05, atol=slack))
