# Two commands do everything on a fresh machine: `make compare` (the main job) and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=
# One thread per worker: tiny models gain nothing from two, and two that compete lose much.
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SETUP = pyproject.toml constraints.txt

.PHONY: compare test test-all test-oldest lint figures experiments clean

compare: $(VENV)/.compare  ## fine-tune, measure, bound, report
	$(BIN)/lodrop compare $(ARGS)

test: $(VENV)/.test lint  ## what a contributor and CI run
	$(PYTEST) $(ARGS)

test-all: $(VENV)/.test lint  ## with the slow checks
	$(PYTEST) -m "slow or not slow" $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-oldest:  ## the oldest supported versions, in an environment of their own
	test -d $(VENV)-oldest || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
	    -c .ci/constraints-oldest.txt -e '.[test]'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -q -n logical \
	    -W default -m 'not slow' $(ARGS)

figures: $(VENV)/.compare  ## redraw every figure and table from the committed records
	$(BIN)/python -m paper_figures

SWEEPS = $(filter-out stability,$(basename $(notdir $(wildcard paper_figures/grids/*.toml))))
experiments: $(VENV)/.compare  ## the runs behind figures 7, 10, 15, 17 and 20: hours on two cores; continues where it was
	for grid in $(SWEEPS); do OMP_NUM_THREADS=1 $(BIN)/lodrop sweep paper_figures/grids/$$grid.toml \
	    --store runs/sweeps --table paper_figures/records/sweeps/$$grid.csv $(ARGS) || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/lodrop sweep paper_figures/grids/stability.toml \
	    --store runs/stability $(ARGS)
	mkdir -p paper_figures/records/stability
	cp runs/stability/*.json paper_figures/records/stability/

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.compare: $(SETUP) | $(BIN)/python
	@echo "installing lodrop and its pinned dependencies into $(VENV) ..."
	$(PIP) -e '.[nn]'
	touch $@

$(VENV)/.test: $(SETUP) | $(BIN)/python
	@echo "installing lodrop and its pinned test dependencies into $(VENV) ..."
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/.compare

clean:
	rm -rf $(VENV) $(VENV)-oldest build *.egg-info
