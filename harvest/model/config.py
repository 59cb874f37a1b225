"""Which language model a harvest runs, and how it is loaded."""

from typing import Annotated, Literal

from pydantic import Field

from ...common.frozen import FrozenModel

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
