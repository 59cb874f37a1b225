"""Explanations as vectors: from a server's ``/embeddings``, or from a sentence encoder in a local folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UsageError
from ...store.untrusted_files import read_object
from ...store.untrusted_model import check_model_folder, files_explained
from .calls import Answer, Call, Caller, Unanswered, split
from .cost import CountTokens
from .failures import EndpointError, RefusedRequestError

if TYPE_CHECKING:
    import torch

TEXTS_AT_ONCE = 32
_LARGEST = 1e30  # of a coordinate; NaN is not below it either


def make_embedding_call(texts: Sequence[str], model: str, num_tokens: int) -> Call[NDArray[np.float32]]:
    """A call that embeds texts: float32 [n, E]."""

    def extract(reply: Mapping[str, Any]) -> Answer:
        try:
            by_index = {item["index"]: item["embedding"] for item in reply["data"]}
            answer = {"vectors": [by_index[number] for number in range(len(texts))]}
        except (KeyError, TypeError):
            answer = {}
        if not fits(answer):
            raise RefusedRequestError(f"the server's JSON has no embeddings of {len(texts)} texts")
        return answer

    def fits(answer: Mapping[str, Any]) -> bool:
        vectors = answer.get("vectors")
        return (
            isinstance(vectors, list)
            and len(vectors) == len(texts)
            and all(isinstance(vector, list) and len(vector) == len(vectors[0]) > 0 for vector in vectors)
            and all(isinstance(x, int | float) and abs(x) < _LARGEST for vector in vectors for x in vector)
        )

    return Call(
        "/embeddings",
        {"model": model, "input": list(texts), "encoding_format": "float"},
        (num_tokens, 0),
        extract,
        fits,
        lambda answer: np.asarray(answer["vectors"], dtype=np.float32),
    )


@dataclass(frozen=True)
class EndpointEncoder:
    """Embeds texts by calls, which are stored like any others."""

    caller: Caller
    name: str
    count: CountTokens

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [n, E].

        Raises:
            EndpointError: the server gives none.
        """
        outcomes = self.caller.make(self.calls(texts), "embeddings", show_progress=False)
        vectors = []
        for outcome in outcomes:
            if isinstance(outcome, Unanswered):
                raise EndpointError(f"{self.caller.endpoint.url} embeds no texts: {outcome.reason}")
            vectors.append(outcome)
        if len({part.shape[1] for part in vectors}) != 1:
            raise EndpointError(f"{self.caller.endpoint.url} gives embeddings of several widths")
        return np.concatenate(vectors)

    def calls(self, texts: Sequence[str]) -> list[Call[NDArray[np.float32]]]:
        return [
            make_embedding_call(part, self.name, sum(map(self.count, part)))
            for part in split(texts, TEXTS_AT_ONCE)
        ]


class SentenceEncoder:
    """A sentence encoder as sentence-transformers saves it: a transformers model, and how it pools tokens.

    Only files of ``folder`` are read: no network, no pickles, no code that comes with the model.

    Raises:
        UsageError: it cannot be loaded, or it pools in a way that is not known here.
    """

    def __init__(self, folder: Path, device: "torch.device") -> None:
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"embeddings.path={folder} is no folder of a sentence encoder: it has no config.json"
            )
        self.name = folder.resolve().name
        self._first_token = _pools_first_token(folder)
        from transformers import AutoModel, AutoTokenizer

        check_model_folder(folder, self.name)
        self._place, self._device = f"embeddings.path={folder}", device
        with files_explained(f"{self._place} cannot be loaded", "; code that comes with it is not run"):
            self._tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self._model = AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
            self._model.eval().to(device)
        self.embed(["a text"])  # before the judge is asked, which takes hours

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of length 1, float32 [n, E]; each depends on its own text only, up to rounding.

        Raises:
            UsageError: the encoder cannot embed them.
        """
        import torch

        parts = []
        with files_explained(f"{self._place} cannot embed texts"), torch.no_grad():
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                batch = self._tokenizer(
                    list(texts[start : start + TEXTS_AT_ONCE]),
                    padding=True, truncation=True, max_length=256, return_tensors="pt",
                ).to(self._device)  # fmt: skip
                hidden_nTE = self._model(**batch).last_hidden_state.float()
                if self._first_token:
                    pooled_nE = hidden_nTE[:, 0]
                else:
                    mask = batch["attention_mask"][:, :, None].float()
                    pooled_nE = (hidden_nTE * mask).sum(1) / mask.sum(1)
                parts.append(torch.nn.functional.normalize(pooled_nE, dim=1).cpu().numpy())
        return np.concatenate(parts)


def _pools_first_token(folder: Path) -> bool:
    """Whether a text's vector is that of its first token; else it is the mean over its tokens."""
    try:
        pooling = read_object(folder / "1_Pooling" / "config.json", "save the encoder again")
    except FileNotFoundError:
        return False
    modes = {name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True}
    if modes == {"pooling_mode_cls_token"}:
        return True
    if modes != {"pooling_mode_mean_tokens"}:
        raise UsageError(
            f"{folder} pools tokens by {', '.join(sorted(modes)) or 'nothing known'}; expected "
            "pooling_mode_mean_tokens or pooling_mode_cls_token"
        )
    return False
