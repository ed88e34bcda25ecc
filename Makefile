# Everything a fresh machine needs: `make quickstart`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: quickstart test test-all lint docs bench bench-gpu bench-venv clean

quickstart: $(BIN)/.stillhouse
	$(BIN)/stillhouse run quickstart
	@echo "Open runs/quickstart/report.html"

test: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python $(VENV) src
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu and not network"

test-all: $(BIN)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu and not network"

lint: $(BIN)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/ty check --python $(VENV) src

docs: $(BIN)/.dev
	$(BIN)/python tools/write_docs.py

bench: bench-venv
	for script in benchmarks/[a-z]*.py; do $(BENCH_VENV)/bin/python $$script --json || exit 1; done

# On a machine with a GPU whose Python has torch and transformers: nothing is installed, not even this package.
bench-gpu:
	PYTHONPATH=src $(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py

# The peers that benchmarks compare with, apart from the environment that is tested; with its Python,
# benchmarks/loss_memory.py measures them too.
bench-venv: $(BENCH_VENV)/.ready

clean:
	rm -rf $(VENV) $(BENCH_VENV) runs .pytest_cache .ruff_cache

# torch comes first and by its exact version: a range would bring the build for another kind of machine, gigabytes of it.
$(BIN)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	@touch $@

$(BIN)/.stillhouse: $(BIN)/.torch pyproject.toml
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(BIN)/.dev: $(BIN)/.torch pyproject.toml
	$(PIP) install --constraint constraints.txt --editable ".[dev]"
	@touch $(BIN)/.stillhouse $@

$(BENCH_VENV)/.ready: constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check --quiet install $(TORCH)
	$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt \
		--requirement benchmarks/requirements.txt --editable .
	@touch $@
