"""The names of the files in a run's folder, which no variant may take."""

RUN_FILE = "run.json"  # what was trained on what, and whether it is finished
RECIPE_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"  # of 'saecache evaluate'
LOCK_FILE = ".lock"
RESERVED_NAMES = {RUN_FILE, RECIPE_FILE, METRICS_FILE, RESULTS_FILE, "tensorboard", "wandb"}
