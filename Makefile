PYTHON ?= python3
# One thread per process: two busy threads on two cores can be ten times slower than one.
export OMP_NUM_THREADS = 1
# Where a process has more, they sleep while they wait: those that spin take the cores that others compute on.
export OMP_WAIT_POLICY = passive
BIN := .venv/bin
# A process for each GPU, two at most since the demo's steps are small; without a GPU two.
PROCESSES ?= $(shell $(BIN)/python -c 'import torch; print(min(2, torch.cuda.device_count()) or 2)')
# Where `make demo` puts its run, and more `key=value` settings for it, for example DEMO="train.epochs=2".
RUN ?= runs/demo
DEMO ?=
SETTINGS = configs/demo.yaml runs_dir=$(patsubst %/,%,$(dir $(RUN))) name=$(notdir $(RUN)) $(DEMO)

.PHONY: demo test gpu-test lint style format coverage race

demo: .venv/installed
	$(BIN)/codelength data $(SETTINGS)
	$(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) -m harness.train $(SETTINGS)
	$(BIN)/codelength eval $(RUN)

test: .venv/installed style
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(PYTEST)

# Everything that only a GPU can show; `GPU="--device cpu --sizes small"` runs its steps on a CPU.
GPU ?=
gpu-test: .venv/installed
	$(BIN)/python -m tests.gpu.check $(GPU)

lint: style
	$(BIN)/mypy

# The part of it that `make test` begins with.
style: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

# Lines that no test runs; processes that tests start are counted too, those that they kill are not.
coverage: .venv/installed
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(PYTEST)

# What the size of the first steps is worth (docs/records.md); RACE="--sizes all --seeds 1" for all of the text.
RACE ?= --sizes 300000 --seeds 3
race: .venv/installed
	$(BIN)/python -m tests.benchmarks.online_codes runs/race --only steps: plain: $(RACE) --send

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("codelength needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
