# `make demo` and `make test` work on a fresh machine: they make .venv and install everything.
# The recipes work from any folder: make -f path/to/Makefile …

ROOT := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
PYTHON ?= python3
VENV ?= $(ROOT).venv
BIN := $(VENV)/bin
OUT ?= out
FIXTURE := $(ROOT)fixtures/gemma4-moe-tiny-Q8_0.gguf

.PHONY: help demo test lint types docs bench evidence fuzz clean

help:
	@echo "make demo      install, prune the model in fixtures/ from 64 to 48 experts, show the cost"
	@echo "make test      install, run all tests"
	@echo "make lint types        ruff; mypy --strict"
	@echo "make bench     measure speed beside cp, llama.cpp and the gguf package"
	@echo "make evidence  compare the ways to choose experts on unseen text"
	@echo "make fuzz      feed the header reader 100,000 damaged headers"
	@echo "make docs      write docs/cli.md from --help"

# Building llama.cpp takes minutes the first time; pip keeps what it built.
$(BIN)/ggprune: $(ROOT)pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@echo "installing; llama.cpp is compiled the first time, which takes about 8 minutes on 2 cores"
	$(BIN)/pip install --quiet --editable "$(ROOT)[dev]"
	@touch $@

demo: $(BIN)/ggprune
	@mkdir -p $(OUT)
	cd $(OUT) && $(BIN)/ggprune $(FIXTURE) --keep 48 --force \
		--text code=$(ROOT)fixtures/calibration/code.txt \
		--text english=$(ROOT)fixtures/calibration/english.txt --max-tokens 8192 --ctx 512

test: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python -m pytest -q -n auto

lint: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/ruff check .

types: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/mypy

docs: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python docs/make_cli.py

bench: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python benchmarks/header.py
	cd $(ROOT) && $(BIN)/python benchmarks/rewrite.py
	cd $(ROOT) && $(BIN)/python benchmarks/calibrate.py
	cd $(ROOT) && $(BIN)/python benchmarks/growth.py

evidence: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python benchmarks/evidence.py

fuzz: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python tests/fuzz_header.py --count 100000

clean:
	rm -rf $(VENV) $(OUT)
