"""What a harvest is: model, text, tokens, hooks, how much, and where it runs. Reading it touches nothing."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ..common.counts import Count
from ..common.frozen import FrozenModel
from ..common.validation import Settings
from ..store.config import StorageConfig
from .text_config import TextConfig

DeviceMap = (
    Literal["auto", "balanced", "balanced_low_0", "sequential"]
    | dict[str, Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)]]
)
Quantization = Literal["8bit", "4bit"]


class AdapterConfig(FrozenModel):
    """A PEFT adapter (LoRA and the like), which is put into the model's weights; needs the package peft."""

    name: str = Field(min_length=1, description="hub name (org/adapter) or a local folder")
    revision: str | None = Field(
        default=None,
        description="hub branch, tag or commit; None is the default branch, pinned by the first run",
    )


class ModelConfig(FrozenModel):
    """Which language model."""

    name: str = Field(
        min_length=1,
        description="hub name (org/model), a local folder, a .gguf file, 'builtin:demo', or "
        "'package:<import name>/<path>' for a file that an installed Python package ships",
    )
    revision: str | None = Field(
        default=None,
        description="hub branch, tag or commit; None is the default branch, pinned by the first run",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="number type of the forward; 'auto' takes the fastest that is safe"
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")
    quantization: Quantization | None = Field(
        default=None,
        description="make the weights smaller when they are loaded, by bitsandbytes; leave it out for models "
        "that are saved so",
    )
    adapter: AdapterConfig | None = Field(default=None, description="a PEFT adapter of the model")


class TokensConfig(FrozenModel):
    """How documents become sequences of ``context`` positions."""

    context: Count = Field(ge=1, le=1 << 20, description="positions of a sequence")
    packing: Literal["packed", "per_document"] = Field(
        default="packed",
        description="'packed' joins documents and cuts the stream; 'per_document' gives each document one "
        "sequence, cut or padded",
    )
    bos: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="begin every sequence with BOS; 'auto': if the tokenizer has one, and not where all text "
        "is chats or token ids, which have their own",
    )
    separator: str = Field(
        default="auto",
        min_length=1,
        description="after each packed document: 'eos', 'bos', 'none' or the text of one token; "
        "'auto': 'eos' when packed, 'none' where all text is chats or token ids",
    )
    min_document_tokens: Count = Field(default=1, ge=1, description="shorter documents are left out")
    max_document_tokens: Count | None = Field(
        default=None, ge=1, description="longer documents are cut to this many tokens; None: no limit"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "TokensConfig":
        if self.packing == "per_document" and self.separator not in ("auto", "none"):
            raise ValueError("separator has no effect with packing=per_document: leave it out")
        if self.bos == "always" and self.context < 2:
            raise ValueError("context must be at least 2 when every sequence begins with BOS")
        if self.max_document_tokens is not None and self.max_document_tokens < self.min_document_tokens:
            raise ValueError("max_document_tokens must not be below min_document_tokens")
        return self


class SelectionConfig(FrozenModel):
    """Which positions become rows. Padding never does."""

    exclude_bos: bool = Field(default=True, description="leave out the BOS that begins a sequence or a chat")
    exclude_separator: bool = Field(default=True, description="leave out the tokens between documents")
    sink_ratio: float | None = Field(
        default=None,
        gt=1,
        allow_inf_nan=False,
        description="leave out attention sinks: rows whose norm at any hook exceeds this many times the "
        "hook's median norm",
    )


class HarvestConfig(Settings):
    """One harvest. ``num_tokens`` counts the positions run through the model, padding not counted."""

    model: ModelConfig
    text: TextConfig
    tokens: TokensConfig
    selection: SelectionConfig = SelectionConfig()
    hooks: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="resid_pre.L, resid_mid.L, resid_post.L, attn_out.L, mlp_in.L, mlp_out.L (L counts "
        "from 0; * is every block), or module paths"
    )
    num_tokens: Annotated[Count, Field(ge=1)] = Field(
        description="tokens to read, as 500_000, 20k or 1e5 (BOS and separators included, padding not): the "
        "harvest ends with the first whole sequence that reaches it",
    )
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        default="auto",
        description="share of documents kept for evaluation; 'auto' is 0.01, more where the text has few "
        "documents, none where it has too few",
    )
    seed: int = Field(
        default=0, ge=0, lt=1 << 63, description="of the shuffle, the held-out split and mixtures"
    )
    storage: StorageConfig = StorageConfig()
    batch_size: Annotated[Count, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="sequences per step; on a CPU it does not change a bit of the cache, on a GPU kernels "
        "may round differently",
    )
    device: str = Field(
        default="auto", min_length=1, description="cpu, cuda, cuda:1, mps; 'auto' takes the fastest there is"
    )
    device_map: DeviceMap | None = Field(
        default=None,
        description="spread a model that does not fit one GPU, as transformers' device_map does: 'auto', "
        "'balanced', or module names with devices; does not change the cache",
    )
    team: tuple[str, ...] = Field(
        default=(),
        description="URLs or folders that are asked for this cache before it is harvested, as those of "
        "SAECACHE_TEAM are; does not change the cache",
    )
    commit_seconds: float = Field(
        default=30.0, ge=0, description="how often progress is made durable; does not change the cache"
    )

    @field_validator("hooks", "team", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("hooks")
    @classmethod
    def _hooks_differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in value if value.count(name) > 1}):
            raise ValueError(f"hooks are listed twice: {', '.join(twice)}")
        return value
