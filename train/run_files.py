"""The names of the files in a run's folder, which no variant may take."""

RUN_FILE = "run.json"  # what was trained on what, and whether it is finished
RECIPE_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"  # of 'saecache evaluate'
LOCK_FILE = ".lock"
TENSORBOARD_FOLDER, WANDB_FOLDER = "tensorboard", "wandb"
ANSWERS_FOLDER = "judge_answers"  # of 'saecache interpret'
_RESERVED_NAMES = {RUN_FILE, RECIPE_FILE, METRICS_FILE, TENSORBOARD_FOLDER, WANDB_FOLDER, ANSWERS_FOLDER}


def is_reserved(name: str) -> bool:
    """Whether the run itself, or what measures it, has files of this name, as ``results.latents``."""
    return name in _RESERVED_NAMES or name.startswith(RESULTS_FILE.removesuffix("json"))
