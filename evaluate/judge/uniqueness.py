"""Which latents of one SAE another SAE lacks: the best match by decoder direction and by explanation.

Sampled-SAE, "Unique Features": similarity of i and j = (cosine of the decoder directions + cosine of the
embedded explanations) / 2, and the best match of i is the j that has most of it.

Legend: a, b judged latents of two SAEs, D model width, E width of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...train import SAE
from ...train.sae_hooks import place_of
from ...train.variants.losses.nfm import unit_rows
from ..metrics.bootstrap import mean_interval
from ..metrics.overlap import max_cosines
from ..results import BestMatch, LatentInterpretation, Uniqueness


class Encoder(Protocol):
    """Turns explanations into vectors."""

    @property
    def name(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [n, E]."""
        ...


@dataclass(frozen=True, kw_only=True)
class ExplainedSAE:
    """An SAE with the latents that have an explanation.

    Attributes:
        latents: their numbers, ascending.
        embedding: float32 [a, E], of their explanations.
    """

    name: str
    sae: SAE
    latents: Sequence[int]
    embedding: NDArray[np.float32]


def compare_all(
    interpreted: Sequence[tuple[str, SAE, Sequence[LatentInterpretation]]], encoder: Encoder, seed: int
) -> list[Uniqueness]:
    """Compare SAEs of one hook and width, each with every other one, in both directions.

    Raises:
        EndpointError: the explanations cannot be embedded.
    """
    explained = []
    for name, sae, latents in interpreted:
        texts = [(one.index, one.explanation) for one in latents if one.explanation is not None]
        if texts:
            embedding = encoder.embed([text for _, text in texts])
            found = ExplainedSAE(name=name, sae=sae, latents=[i for i, _ in texts], embedding=embedding)
            explained.append(found)
    return [
        find_unique(a, b, encoder.name, seed)
        for a, b in permutations(explained, 2)
        if place_of(a.sae.cfg) == place_of(b.sae.cfg)
    ]


def find_unique(a: ExplainedSAE, b: ExplainedSAE, encoder: str, seed: int) -> Uniqueness:
    """Match every judged latent of ``a`` with its most similar judged latent of ``b``.

    Args:
        encoder: the name of what embedded the explanations.
    """
    decoder_aD, decoder_bD = (unit_rows(one.sae.W_dec[list(one.latents)]).cpu() for one in (a, b))
    text_aE, text_bE = (unit_rows(torch.from_numpy(one.embedding)) for one in (a, b))
    cosine_ab, text_ab = decoder_aD @ decoder_bD.T, text_aE @ text_bE.T
    similarity_ab = (cosine_ab + text_ab) / 2
    best = similarity_ab.argmax(1)
    nearest = max_cosines(a.sae.W_dec[list(a.latents)], b.sae.W_dec)
    matches = [
        BestMatch(
            latent=latent,
            match=b.latents[int(best[i])],
            similarity=float(similarity_ab[i, best[i]]),
            decoder=float(cosine_ab[i, best[i]]),
            text=float(text_ab[i, best[i]]),
            nearest_cosine=float(nearest[i]),
        )
        for i, latent in enumerate(a.latents)
    ]
    values = np.asarray([match.similarity for match in matches])
    return Uniqueness(
        a=a.name,
        b=b.name,
        hook=a.sae.cfg.hook,
        encoder=encoder,
        num_a=len(a.latents),
        num_b=len(b.latents),
        mean_similarity=float(values.mean()),
        interval=mean_interval(values, seed),
        matches=sorted(matches, key=lambda match: (match.similarity, match.latent)),
    )
