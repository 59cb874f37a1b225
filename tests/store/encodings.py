"""The encodings that rows can be stored in, as settings of ``StorageConfig``."""

from typing import Any

ENCODINGS: dict[str, dict[str, Any]] = {
    "float16": {},
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
    "float16-zstd": {"codec": {"kind": "zstd"}},
    "float16-blosc": {"codec": {"kind": "blosc"}},
    "float32-blosc": {
        "dtype": "float32",
        "codec": {"kind": "blosc", "cname": "lz4", "shuffle": "bitshuffle"},
    },
    "bfloat16-blosc": {"dtype": "bfloat16", "codec": {"kind": "blosc"}},
    "int8-zstd": {"dtype": "int8", "codec": {"kind": "zstd", "level": 1}},
}
COMPACT = [name for name in ENCODINGS if name not in ("float16", "float32")]
COMPRESSED = [name for name in ENCODINGS if "-" in name]
