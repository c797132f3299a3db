# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test lint format bench clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,tune,serve]'
	touch $@

demo: $(STAMP)  ## train seven variants on the embedded digits and write a report
	$(BIN)/normlab compare digits --epochs 4 --seeds 3 --out demo-report

test: $(STAMP) lint  ## everything that continuous integration runs
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || echo "NO BROWSER TESTS: Chromium is missing; apt-get install chromium chromium-driver" >&2
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## ours beside torch's, milliseconds and ratios, losses included
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo-report .pytest_cache .mypy_cache .ruff_cache
