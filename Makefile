# The two commands that matter: `make serve` and `make test`. Each sets up all it needs.

PYTHON ?= python3
VENV ?= .venv
# What gets installed; any release from 2.9 on works. TORCH_INDEX chooses another index for it, such as
# https://download.pytorch.org/whl/cpu (no CUDA libraries) or https://download.pytorch.org/whl/cu128.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ARGS ?=
# Environments and checkpoints of the engines that are measured beside this one, about 15 GB.
PEERS ?= $(HOME)/.cache/secateur/peers

# What study-science works on: checkpoints by these names under MODELS; MBPP, GSM8K and distractors under DATA.
MODELS ?= $(HOME)/.cache/reference-models
DATA ?=
COMMA := ,

BIN := $(VENV)/bin
# The console's chart library. Where it cannot be fetched that is said, tried again next time, and no error.
VENDORED := server/console/vendor/vendor.lock.json

.PHONY: help install serve demo test test-reference check format bench bench-peers bench-report metrics-page study study-recovery study-science science-report dashboards screenshots wheel image clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(VENV)/.installed $(VENDORED)  ## Create the environment with what serving needs

serve: $(VENV)/.installed $(VENDORED)  ## Serve the embedded model on 127.0.0.1:8000 (ARGS="--port 8001 ...")
	$(BIN)/secateur serve $(ARGS)

demo: $(VENV)/.installed $(VENDORED)  ## Serve it at six sizes to made-up users, and watch (ARGS="--serve '--threads 1'")
	@$(BIN)/python -m bench.demo $(ARGS)

test: $(VENV)/.installed-dev $(VENDORED)  ## Run the tests; needs no model
	$(BIN)/pytest $(ARGS)

test-reference: $(VENV)/.installed-dev  ## Run the tests on real models under ~/.cache/reference-models
	$(BIN)/pytest -m reference --timeout 1200 $(ARGS)

check: $(VENV)/.installed-dev  ## Formatting, lint, types, and the arrows between the packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.11 deploy  # what it is built with needs that
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev  ## Measure speed and memory in 10 minutes (ARGS="--model DIR --task TASK ...")
	$(BIN)/python -m bench --out "$$($(BIN)/python -m bench.environment)/alone.json" $(ARGS)

bench-peers: $(VENV)/.installed-dev  ## The same beside OpenVINO and vLLM, set up in PEERS (ARGS="--phases w123 ...")
	$(BIN)/python -m bench.peers --directory $(PEERS) $(ARGS)

bench-report: $(VENV)/.installed-dev  ## Put bench/results into docs/performance.md
	$(BIN)/python -m bench.report

metrics-page: $(VENV)/.installed  ## Put the table of metrics into docs/reference/metrics.md
	$(BIN)/python -m server.monitoring.metrics_page

study: $(VENV)/.installed-dev  ## Study how much of math-mini may go, in some 7 minutes; goes on where it was (ARGS="...")
	$(BIN)/secateur study --items 1000 --sparsities 0.1,0.2,0.3,0.4,0.5,0.6 --compare-scores taylor2,selectivity \
		--out docs/studies/math-mini $(ARGS)

study-recovery: $(VENV)/.installed-dev  ## Study what training gives back to math-mini, in half an hour; goes on where it was
	$(BIN)/python -m training.recovery --work build/recovery $(ARGS)

dashboards: $(VENV)/.installed-dev  ## Build Grafana's dashboards into deploy/grafana/dashboards
	$(BIN)/python -m deploy.dashboards

study-science: $(VENV)/.installed-dev  ## Study the coders in MODELS at HumanEval and GSM8K, in a day; goes on where it was
	@test -f "$(DATA)/gsm8k_train.jsonl" || { echo "DATA= names the directory of gsm8k_train.jsonl"; exit 2; }
	$(call science,coder-0.5b,humaneval,mbpp_train.jsonl,,--score taylor2 --compare-scores selectivity)
	$(call science,coder-0.5b,humaneval,mbpp_train.jsonl,-mixed,--random-seeds '')
	$(call science,coder-1.5b,humaneval,mbpp_train.jsonl,,--score taylor2 --compare-scores taylor2_mixed$(COMMA)selectivity)
	$(call science,coder-0.5b,gsm8k,gsm8k_train.jsonl,,--compare-scores taylor2$(COMMA)selectivity --items 300)
	$(call science,coder-1.5b,gsm8k,gsm8k_train.jsonl,,--compare-scores taylor2$(COMMA)selectivity --items 300)
	$(BIN)/python -m eval.science

# Model, task, file of prompts, end of the directory's name, options of the study. A profile and answers that are there
# are kept. No two studies of a model at a task have the same strategy: their results stand in one table.
define science
	$(BIN)/secateur profile --model $(MODELS)/$(1) --task $(2) --prompts $(DATA)/$(3) \
		--distractors $(DATA)/distractors.jsonl --num-prompts 96 --dtype bfloat16
	$(BIN)/secateur study --model $(MODELS)/$(1) --task $(2) --prompts $(DATA)/$(3) \
		--distractors $(DATA)/distractors.jsonl $(5) --sparsities 0.1,0.2,0.3,0.35 --tolerance 0.05 \
		--out docs/studies/$(1)-$(2)$(4) $(ARGS)

endef

science-report: $(VENV)/.installed-dev  ## Put the studies that are there into docs/science.md
	$(BIN)/python -m eval.science

screenshots: $(VENV)/.installed-dev $(VENDORED)  ## Take the console's pictures for docs/images (needs Debian's chromium)
	$(BIN)/python -m tests.console.screenshots $(ARGS)

wheel: $(VENV)/.installed $(VENDORED)  ## Build the wheel into dist/
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

image:  ## Build the container image secateur (needs Docker; TORCH_INDEX=... for CUDA)
	docker build $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) --tag secateur .

clean:  ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENDORED): server/console/vendor.lock.json server/console/fetch.py
	@$(PYTHON) server/console/fetch.py

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py $(wildcard server/engine/kernels/src/*)
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@
