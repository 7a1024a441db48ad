# `make demo` and `make test` work on a fresh machine: they make .venv and install everything.
# The recipes work from any folder: make -f path/to/Makefile …

ROOT := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
PYTHON ?= python3
VENV ?= $(ROOT).venv
BIN := $(VENV)/bin
OUT ?= out
FIXTURE := $(ROOT)fixtures/gemma4-moe-tiny-Q8_0.gguf

.PHONY: help demo test quick lint types docs bench evidence fuzz clean

help:
	@echo "make demo      install, prune the model in fixtures/ from 64 to 48 experts, show the cost"
	@echo "make test      install, run all tests"
	@echo "make quick     only the tests that start no process and do not load llama.cpp: seconds"
	@echo "make lint types        ruff; mypy --strict"
	@echo "make bench     measure speed beside cp, llama.cpp and the gguf package"
	@echo "make evidence  compare the ways to choose experts on unseen text"
	@echo "make fuzz      feed the header reader 100,000 damaged headers"
	@echo "make docs      write docs/cli.md from --help, and the tables of the other pages"

# Building llama.cpp takes minutes the first time; pip keeps what it built.
$(BIN)/ggprune: $(ROOT)pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@echo "installing; llama.cpp is compiled the first time, which takes about 8 minutes on 2 cores"
	$(BIN)/pip install --quiet --editable "$(ROOT)[dev]"
	@touch $@

# The model was trained on these domains; it is measured on text that nothing has seen.
DOMAINS := dictionary english french german python scripture
CALIBRATION := $(foreach d,$(DOMAINS),--text $(d)=$(ROOT)fixtures/calibration/$(d).txt)
HELD_OUT := $(foreach d,$(DOMAINS),--eval-text $(d)=$(ROOT)fixtures/heldout/$(d).txt)

demo: $(BIN)/ggprune
	@mkdir -p $(OUT)
	@echo "ggprune $(notdir $(FIXTURE)) --keep 48 --text NAME=PATH … --eval-text NAME=PATH …"
	@cd $(OUT) && $(BIN)/ggprune $(FIXTURE) --keep 48 --force \
		$(CALIBRATION) $(HELD_OUT) --ctx 512 --max-tokens 4096

test: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python -m pytest -q -n auto

quick: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python -m pytest -q -n auto --quick

lint: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/ruff check .
	cd $(ROOT) && $(BIN)/ruff format --check .

types: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/mypy

docs: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python docs/make_cli.py
	cd $(ROOT) && $(BIN)/python docs/make_tables.py

bench: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python benchmarks/header.py
	cd $(ROOT) && $(BIN)/python benchmarks/rewrite.py
	cd $(ROOT) && $(BIN)/python benchmarks/calibrate.py
	cd $(ROOT) && $(BIN)/python benchmarks/growth.py

evidence: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python benchmarks/evidence.py

fuzz: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python -m tests.support.fuzz_header --count 100000

clean:
	rm -rf $(VENV) $(OUT)

# Batch work
#
#   make prune   MODEL=Big-Q8_0.gguf KEEP="96 109 112"
#   make requant MODEL=Big-BF16.gguf TYPES="Q8_0 Q5_K_M Q4_K_M"
#   make release MODEL=Big-Q8_0.gguf SOURCE=Big-BF16.gguf KEEP="96 109" TYPES="Q8_0 Q4_K_M" \
#                IMATRIX=yes REPO=me/Big-GGUF
#
# MODEL is measured; SOURCE (default: MODEL) is pruned and quantized. IMATRIX: a file, or `yes` to
# gather one. Results are in OUT. CALIBRATE, PLAN, QUANTIZE, EVALUATE, MATRIX, CARD: more options
# for these commands. What is newer than what it is made from is left alone; a type that fails does
# not stop the others. `ggprune batch` does the same without make.

.PHONY: prune requant release
.DELETE_ON_ERROR:

GGPRUNE ?= $(or $(wildcard $(BIN)/ggprune),$(shell command -v ggprune),$(BIN)/ggprune)
TYPES ?= Q8_0 Q5_K_M Q4_K_M Q3_K_M
SOURCE ?= $(MODEL)
SHA256 ?= $(if $(shell command -v sha256sum),sha256sum,shasum -a 256)

BATCH := $(filter prune requant release,$(MAKECMDGOALS))
ifneq ($(BATCH),)
MAKEFLAGS += --keep-going
$(if $(MODEL),,$(error MODEL is missing: make $(BATCH) MODEL=model.gguf))
$(if $(filter prune release,$(BATCH)),$(if $(KEEP),,$(error KEEP is missing: make $(BATCH) KEEP="96 109")))

# A name as ggprune makes it: without shard numbers, .gguf and quantization.
QUANT := (UD-)?I?Q[0-9]_(K(_[A-Z]{1,2})?|[01]|NL|XXS|XS|S|M)|TQ[0-9]_0|MXFP4(_MOE)?|B?F16|FP16|F32
NAME := $(shell echo '$(notdir $(MODEL))' | sed -E -e 's/(-[0-9]{5}-of-[0-9]{5})?\.gguf$$//' \
	-e 's/[-.]($(QUANT))((-[0-9]+e)?)$$/\6/I')
KINDS := $(shell echo '$(TYPES)' | tr a-z A-Z)
KINDS := $(patsubst Q3_K,Q3_K_M,$(patsubst Q4_K,Q4_K_M,$(patsubst Q5_K,Q5_K_M,$(KINDS))))
READY := $(filter $(BIN)/ggprune,$(GGPRUNE))
STATS := $(OUT)/$(NAME).stats.gguf
WORK := $(OUT)/pruned/$(NAME)
FULL_MATRIX := $(if $(filter yes,$(IMATRIX)),$(OUT)/$(NAME).imatrix.gguf,$(IMATRIX))

prune: $(KEEP:%=$(WORK)-%e.gguf)
requant: $(KINDS:%=$(OUT)/$(NAME)-%.gguf)
release: $(foreach n,$(KEEP),$(OUT)/$(NAME)-$(n)e/README.md $(OUT)/$(NAME)-$(n)e/SHA256SUMS)

$(STATS): $(MODEL) | $(READY)
	@mkdir -p $(@D)
	$(GGPRUNE) calibrate $< -o $@ $(CALIBRATE) --force

ifeq ($(IMATRIX),yes)
$(FULL_MATRIX): $(MODEL) | $(READY)
	@mkdir -p $(@D)
	$(GGPRUNE) imatrix $< -o $@ $(MATRIX) --force
endif

# One number of experts: $(1).
define PRUNED
$(WORK)-$(1)e.plan.json: $(STATS)
	@mkdir -p $$(@D)
	$$(GGPRUNE) plan $$< --keep $(1) -o $$@ $$(PLAN) --force
$(WORK)-$(1)e.gguf: $(SOURCE) $(WORK)-$(1)e.plan.json
	$$(GGPRUNE) apply $$^ -o $$@ --force
$(WORK)-$(1)e.imatrix$(suffix $(FULL_MATRIX)): $(FULL_MATRIX) $(WORK)-$(1)e.plan.json
	$$(GGPRUNE) slice-imatrix $$< --plan $(WORK)-$(1)e.plan.json -o $$@ --force
$(OUT)/$(NAME)-$(1)e/$(NAME)-$(1)e.expert_drop_metadata.json: $(WORK)-$(1)e.gguf
	@mkdir -p $$(@D)
	cp $(WORK)-$(1)e.expert_drop_metadata.json $$@
$(OUT)/$(NAME)-$(1)e/README.md: $(KINDS:%=$(OUT)/$(NAME)-$(1)e/$(NAME)-$(1)e-%.gguf) \
		$(KINDS:%=$(OUT)/$(NAME)-$(1)e/$(NAME)-$(1)e-%.evaluation.json) \
		$(KINDS:%=$(OUT)/$(NAME)-$(1)e/Modelfile-%) \
		$(OUT)/$(NAME)-$(1)e/$(NAME)-$(1)e.expert_drop_metadata.json
	$$(GGPRUNE) card $$(@D) $$(REPO:%=--repo %) -o $$@ $$(CARD) --force
$(OUT)/$(NAME)-$(1)e/SHA256SUMS: $(KINDS:%=$(OUT)/$(NAME)-$(1)e/$(NAME)-$(1)e-%.gguf)
	cd $$(@D) && $$(SHA256) $$(^F) > SHA256SUMS.part && mv SHA256SUMS.part SHA256SUMS
endef

# One quantization $(3) of the file $(1) with the importance matrix $(2), called $(4)-$(3).gguf.
define QUANTIZED
$(4)-$(3).gguf: $(1) $(2) | $(READY)
	@mkdir -p $$(@D)
	$$(GGPRUNE) quantize $$< $(3) -o $$(@D) $(2:%=--imatrix %) $$(QUANTIZE) --allow-requantize --force
endef

# What a quantization $(2) with $(1) experts cost, and its Modelfile.
define MEASURED
$(OUT)/$(NAME)-$(1)e/$(NAME)-$(1)e-$(2).evaluation.json: $(OUT)/$(NAME)-$(1)e/$(NAME)-$(1)e-$(2).gguf
	$$(GGPRUNE) evaluate $(MODEL) $$< --json $$(EVALUATE) > $$@.part && mv $$@.part $$@
$(OUT)/$(NAME)-$(1)e/Modelfile-$(2): $(OUT)/$(NAME)-$(1)e/$(NAME)-$(1)e-$(2).gguf
	$$(GGPRUNE) modelfile $$< -o $$@ --force
endef

$(foreach n,$(KEEP),$(eval $(call PRUNED,$(n))))
$(foreach n,$(KEEP),$(foreach t,$(KINDS),$(eval $(call MEASURED,$(n),$(t)))))
$(foreach n,$(KEEP),$(foreach t,$(KINDS),$(eval $(call QUANTIZED,$(WORK)-$(n)e.gguf,$(if \
	$(IMATRIX),$(WORK)-$(n)e.imatrix$(suffix $(FULL_MATRIX))),$(t),$(OUT)/$(NAME)-$(n)e/$(NAME)-$(n)e))))
$(foreach t,$(KINDS),$(if $(filter $(MODEL),$(OUT)/$(NAME)-$(t).gguf),,$(eval \
	$(call QUANTIZED,$(MODEL),$(FULL_MATRIX),$(t),$(OUT)/$(NAME)))))
endif
