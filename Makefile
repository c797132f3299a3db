# Two commands do everything on a fresh machine: `make demo` and `make test`. `make help` lists the others.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# what a target needs is installed once, and again when the versions change
DEMO   := $(VENV)/.demo
TEST   := $(VENV)/.test
DOCS   := $(VENV)/.docs
PIP     = $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: help demo test test-all lint kernels format docs bench bench-verdicts soak gpu wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	touch $@

$(DEMO): $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[study,report]'
	touch $@

$(TEST): $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[study,report,parquet,serve,test]'
	touch $(DEMO) $@

$(DOCS): $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[docs]'
	touch $@

demo: $(DEMO)  ## train five variants on the embedded digits and write a report
	$(BIN)/normlab compare digits --epochs 4 --seeds 3 --out demo-report

test: $(TEST)  ## what continuous integration runs: lint, types, every test but the slow ones
	@$(MAKE) --no-print-directory -j2 lint kernels
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || echo "NO BROWSER TESTS: Chromium is missing; apt-get install chromium chromium-driver" >&2
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(TEST)  ## every test, of every case, with more of the examples that are drawn
	@$(MAKE) --no-print-directory -j2 lint kernels
	$(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-profile thorough

lint: $(TEST)  ## style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

kernels: $(TEST)  ## compile the CPU kernels that tests use, where that has not been done
	@$(BIN)/python -m tests.compiled

format: $(TEST)  ## bring the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS)  ## build the site in site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(TEST)  ## ours beside torch's, milliseconds and ratios, losses included
	$(BIN)/python -m benchmarks

bench-verdicts: $(TEST)  ## ways of judging a study beside each other: errors, power, changes of mind
	$(BIN)/python -m benchmarks.verdicts

soak: $(TEST)  ## ten minutes of kills, full disks and clock jumps; ARGS='--seconds 60' for fewer
	$(BIN)/python -m benchmarks.soak $(ARGS)

# with the torch that is there: a machine with a GPU has its own, and perhaps no network
gpu:  ## all that is to be known of a GPU, in ten minutes; ARGS=--dry-run needs none
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(ARGS)

wheel: $(DEMO)  ## build dist/normlab-*.whl, with kernels that are compiled for it in some minutes
	$(BIN)/python -m wheels.objects
	NORMLAB_WHEEL=build/objects $(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## remove what these targets made
	rm -rf $(VENV) build demo-report dist site .pytest_cache .mypy_cache .ruff_cache
