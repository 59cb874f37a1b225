"""Settings of every kind of SAE, so that each of its terms is at work in a few steps."""

from typing import Any

from saecache.train.variants import VARIANTS

AUXK: dict[str, Any] = {"auxk": {"coefficient": 0.1, "k": 4}}
SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 5, **AUXK},
    "multi_topk": {"k": 3, **AUXK},
    "batch_topk": {"k": 5, **AUXK},
    "mutual_choice": {
        "k": 5, **AUXK, "window_rows": 256, "nfm": {"coefficient": 1e-3},
        "nfm_inf": {"coefficient": 1e-3, "sample": 40},
    },
    "feature_choice": {"k": 5},
    "feature_choice after mutual": {
        "k": 5, "zipf": {"rounding": "carry"}, "mutual_choice": {"steps": 2, "window_rows": 200},
    },
    "sampled": {"k": 4, "score": "entropy", "pool_factor": 6, **AUXK},
    "sampled uniformly": {"k": 4, "score": "uniform", "pool_factor": 6},
    "probabilistic_topk": {"k": 5, "warmup": 2},
    "matryoshka_batch_topk": {"k": 5, "prefixes": [0.25, 0.5, 1.0], **AUXK},
    "gated": {},
    "jumprelu": {},
    "jumprelu with tanh": {
        "penalty": {"kind": "tanh", "coefficient": 0.01}, "jump_to": "threshold_and_input",
    },
    "relu": {},
    "relu resampled": {"decoder": "free", "resampling": {"every_steps": 2, "idle_steps": 1}},
}  # fmt: skip


def settings_of(name: str) -> dict[str, Any]:
    """The settings called ``name``, with their kind: the first word."""
    return {"kind": name.split()[0], **SETTINGS[name]}


def test_all_kinds_are_here() -> None:
    assert {name.split()[0] for name in SETTINGS} == VARIANTS.keys(), (
        "add settings of the kind to SETTINGS here"
    )
