"""The settings of ``saecache interpret``; ``results.json`` records those that its figures depend on."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...common.counts import Count
from ...common.frozen import FrozenModel
from ...common.validation import Settings

DECILES = 10


class EndpointConfig(FrozenModel):
    """The server that answers, and how it is asked. Any server with OpenAI's chat completions will do."""

    url: str | None = None
    """Its base, as ``http://127.0.0.1:8000/v1``; ``/chat/completions`` is added to it."""
    model: str | None = None
    """The name of the model there."""
    key_variable: str = "SAECACHE_JUDGE_KEY"
    """The environment variable that holds the API key; unset for a server that needs none."""
    stored_as: str | None = None
    """The server's name in the folder of answers; None: its URL. Give it one name where its address changes,
    and never one name to two models.
    """
    check_model: bool = True
    """Look for the model in the server's list of models, if it has one, before the first call."""
    temperature: float | None = Field(0.0, ge=0)
    """None leaves it out of the requests, for models that refuse it."""
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105
    """What the server calls the limit of an answer's tokens."""
    explanation_tokens: Count = Field(400, ge=1)
    """The most tokens of an explanation, counted with the tokens in which the model thinks aloud."""
    score_tokens: Count = Field(100, ge=1)
    """The most tokens of the answer to a scoring prompt."""
    extra: dict[str, Any] = Field({})
    """More fields of every chat request, as ``{seed: 0}``; they replace those of the same name."""
    concurrency: int = Field(8, ge=1, le=256)
    """Calls under way at once."""
    requests_per_minute: Count | None = Field(None, ge=1)
    tokens_per_minute: Count | None = Field(None, ge=1)
    """Of prompts and answers, by the count of the estimate."""
    timeout_seconds: float = Field(120.0, gt=0)
    """Of one attempt, from the connection to the last byte."""
    patience_seconds: float = Field(600.0, gt=0)
    """Of one call with all its attempts and the pauses between them."""
    max_retries: int = Field(8, ge=0)
    """Attempts after the first, if the server is busy, fails or breaks off."""
    max_repairs: int = Field(2, ge=0)
    """How often a call is made again after an answer that cannot be read."""


class WindowsConfig(FrozenModel):
    """Which pieces of held-out text are shown. The defaults are those of delphi (Paulo et al. 2025)."""

    tokens: int = Field(32, ge=4)
    """Tokens of a window."""
    least: Count = Field(200, ge=1)
    """A latent that is active in fewer windows is not judged."""
    explain: int = Field(40, ge=DECILES, multiple_of=DECILES)
    """Windows in the prompt of an explanation, spread over the deciles of activation."""
    score: int = Field(50, ge=DECILES, multiple_of=DECILES)
    """Active windows of each score, spread over the deciles; as many inactive ones come to them."""
    per_prompt: int = Field(5, ge=1)
    """Windows in one prompt of a score."""
    highlight_share: float = Field(0.3, ge=0, le=1)
    """A token is highlighted from this share of its window's largest activation on."""


class CalibrationConfig(FrozenModel):
    """Scores by the strength of the activation (Probabilistic TopK, Figure 5): every latent's windows fall
    into ``buckets`` of equal size, and each bucket is explained and scored on its own.
    """

    buckets: int = Field(5, ge=2)
    explain: int = Field(10, ge=1)
    """Windows in the prompt of a bucket's explanation."""
    score: int = Field(10, ge=1)
    """Active windows of a bucket's score; as many inactive ones come to them."""


class EndpointEmbeddings(FrozenModel):
    """Explanations are embedded by a server with OpenAI's ``/embeddings``."""

    kind: Literal["endpoint"]
    model: str
    url: str | None = None
    """None: the judge's server."""
    key_variable: str | None = None
    """None: the judge's variable at the judge's server, and no key at another one."""


class FolderEmbeddings(FrozenModel):
    """Explanations are embedded by a sentence encoder in a folder, as sentence-transformers saves it."""

    kind: Literal["folder"]
    path: str


class Price(FrozenModel):
    """What a million tokens cost, in any currency."""

    prompt_per_million: float = Field(ge=0)
    completion_per_million: float = Field(ge=0)


class InterpretConfig(Settings):
    """What a judge is asked about which latents, and how much that may cost."""

    endpoint: EndpointConfig = EndpointConfig()
    num_latents: Count | None = Field(150, ge=1)
    """So many latents of each SAE, drawn from those that are active in enough windows; None: all of these."""
    latents: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    """These latents instead, of every SAE."""
    max_rows: Count = Field(2_000_000, ge=1)
    """At most this many held-out rows, the first in reading order, are searched for windows."""
    rows_per_block: Count = Field(4096, ge=1)
    """Rows encoded at once. Bounds memory; the figures do not depend on it."""
    windows: WindowsConfig = WindowsConfig()
    detection: bool = True
    """Score whether the judge finds the windows in which the latent is active."""
    fuzzing: Literal["inactive", "active", "none"] = "inactive"
    """Score whether the judge tells rightly from wrongly highlighted tokens. The wrong ones are random tokens
    of inactive windows, or, which is harder, tokens of active windows on which the latent is silent."""
    calibration: CalibrationConfig | None = CalibrationConfig()
    """None leaves the scores by bucket out."""
    embeddings: Annotated[EndpointEmbeddings | FolderEmbeddings, Field(discriminator="kind")] | None = None
    """How explanations of several SAEs are compared; None: they are not."""
    prompts: str | None = None
    """A folder with templates in place of the shipped ones; those that it lacks are the shipped ones."""
    max_calls: Count = Field(20_000, ge=1)
    """Refuse to begin if more calls are needed."""
    max_tokens: Count = Field(20_000_000, ge=1)
    """Refuse to begin if more tokens, of prompts and answers, are expected."""
    price: Price | None = None
    tokenizer: str | None = None
    """A tokenizer.json, or a folder with one, that counts the judge's tokens; None: four bytes a token."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Chooses the latents and their windows."""
    device: str = "auto"
    """Where SAEs and a local sentence encoder run: cpu, cuda, cuda:1, mps, or auto."""

    @model_validator(mode="after")
    def _asks_something(self) -> "InterpretConfig":
        if not self.detection and self.fuzzing == "none" and self.calibration is None:
            raise ValueError("detection, fuzzing and calibration are all off: set one of them")
        return self
