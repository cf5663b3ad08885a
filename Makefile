# Two commands set everything up on a fresh machine: `make demo` and `make test`.
# Both use one local environment; the second time they start at once.

PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= cpu,hf,s3,dev
PYTEST_ARGS ?=
# Processes that test beside each other. All tests on Ray go to one of them (tests/conftest.py), and
# each computes with one thread: more would only wait for the other's.
TESTERS ?= 2
# Where `make fuzz` begins, and how long it goes on.
SEED    ?= 0
SECONDS ?= 600

PY    := $(VENV)/bin/python
comma := ,
# One stamp per set of extras: another set installs what is missing.
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
PARTS := cluster datasets graph_store trainers tune
# Only folders that hold Python files: mypy stops at an empty one.
TYPED := $(foreach part,$(PARTS),$(if $(wildcard $(part)/*.py),-p labelmesh.$(part)))
BESIDE := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TESTERS) --dist loadscope --no-loadscope-reorder

export DS_BUILD_OPS := 0

.DEFAULT_GOAL := help
.PHONY: help env demo results test soak test-fast fuzz check lint types format lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

env: $(STAMP)  ## make the local environment and install Labelmesh into it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Labelmesh needs Python 3.11 or later, and $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1); name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@# torch goes first and by its pin: otherwise a dependency may pull another build beside it.
	$(PY) -m pip install --quiet --constraint constraints.txt torch setuptools
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: env  ## train on a data set that needs no download, and open the way to its report
	$(PY) -m labelmesh.cluster.demo

results: env  ## the table of methods on a subset of Fashion-MNIST (DATA=folder with the .gz files)
	test -f data/fashion-mnist/dataset.json || \
	  $(PY) -m labelmesh data import idx "$(DATA)" data/fashion-mnist
	$(PY) benchmarks/results.py --data data/fashion-mnist

test: env  ## every test but those of `make soak`
	$(BESIDE) -m "not soak" $(PYTEST_ARGS)

soak: env  ## clusters of several machines, deaths by the dozen, sweeps whose driver is killed
	$(PY) -m pytest -m soak $(PYTEST_ARGS)

test-fast: env  ## the tests that start no Ray and take less than half a minute
	$(BESIDE) -m "not ray and not slow and not soak" $(PYTEST_ARGS)

fuzz: env  ## random histories of moving features against brute force (SEED=0 SECONDS=600)
	$(PY) tests/fuzz --seed $(SEED) --seconds $(SECONDS)

check: lint types  ## what .ci/run asks before the tests

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: env
	@# The repository's root is the package, so the type checker sees it through a link.
	@mkdir -p .types && ln -sfn .. .types/labelmesh
	MYPYPATH=.types $(PY) -m mypy -m labelmesh $(TYPED)

format: env  ## put the source into its final form
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: env  ## write the versions of the local environment into constraints.txt
	@{ sed -n '/^#/p' constraints.txt; \
	  $(PY) -m pip freeze --all --exclude labelmesh --exclude pip --exclude wheel \
	  | sed -n -e 's/^\([A-Za-z0-9._-]*==[^+ ]*\).*/\1/p'; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove everything that was made here, the environment too
	rm -rf $(VENV) .types build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(PARTS) tests -name __pycache__ -type d -prune -exec rm -rf {} +
