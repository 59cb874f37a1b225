"""What a harvest is: model, text, tokens, hooks, how much, and where it runs. Reading it touches nothing."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ..common.counts import Count
from ..common.frozen import FrozenModel
from ..common.validation import Settings
from ..store.config import StorageConfig
from .model.config import DeviceMap, ModelConfig
from .text.config import TextConfig, TokensConfig


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
