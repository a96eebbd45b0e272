# Two commands for a newcomer: `make demo` and `make test`. Both build .venv first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
THREADS ?= $(shell nproc 2>/dev/null || echo 2)
EPOCHS ?= 20
TIME ?= 25m
SINGLE_RUNS := $(wildcard results/digits results/cifar* results/sst2 results/squad)
WORKERS ?= 2
MODELS ?= vit-small vit-base roberta-base

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LAUNCH := $(BIN)/accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no \
	--dynamo_backend no --num_cpu_threads_per_process $(THREADS)
DIGITS := $(LAUNCH) tools/train_vtab.py --dataset digits --model capaboost_vit_micro_patch8_64 \
	--epochs $(EPOCHS)

TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-hard mutants lint docs evidence support tables plots reliability bench gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## build .venv with the pinned versions and this project in editable mode

$(STAMP): setup.py setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python found; install Python 3.11 or give PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; give PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

demo: install ## train a linear probe and CapaBoost-LoRA on the embedded digits, offline, and compare them
	rm -rf runs/demo
	$(DIGITS) --method linear --output-dir runs/demo/linear
	$(DIGITS) --method capaboost-lora --output-dir runs/demo/capaboost-lora
	$(BIN)/capaboost tables runs/demo

test: lint ## lint, then all tests but the long ones, by WORKERS=2 processes of one thread (some ten minutes)
	$(TESTS) -m "not long"

test-all: lint ## every test, and the generated hard cases for longer: before a release (some 20 minutes)
	$(TESTS) --hard

test-hard: install ## the generated hard cases of test-all alone, with their counts into docs/reliability.md
	OMP_NUM_THREADS=1 timeout 2400 $(BIN)/python -m pytest tests/hard --hard --hard-report results/reliability/hard.json
	$(MAKE) reliability

mutants: install ## put 60 small faults into the source, one by one, and count those that the tests find (an hour)
	$(BIN)/python -m tests.mutants --number 60 --seed 0

reliability: install ## the tables of docs/reliability.md from the marked tests and the counts of the last long run
	$(BIN)/python -m tests.hard.make_page

lint: install ## ruff (rules and format), pyright (types) and interrogate (docstrings)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/interrogate -q capaboost capaboost_core capaboost_peft capaboost_text capaboost_vision

docs: install ## the site in build/site, with the tutorials executed (DOCS_EXECUTE=0 leaves that out); then serve it
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[docs]' -c constraints.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "$(BIN)/python -m http.server -d build/site shows it"

evidence: install ## judge the claims of the paper from the results of runs, and count published means: two pages and a picture
	$(BIN)/python docs/make/evidence.py
	$(BIN)/python docs/make/published.py

support: install ## try every method on every architecture, and count what each costs: tables of the site
	$(BIN)/python tools/probe_support.py
	for model in vit_base_patch16_224 roberta-base; do \
		$(BIN)/capaboost flops --model $$model --methods all --output results/accounting/all/$$model; done

tables: install ## write the tables of the single runs into results/ and docs/results.md; sweeps have their own pages
	$(BIN)/capaboost tables $(SINGLE_RUNS) --markdown results/tables.md \
		--csv results/tables.csv --readme docs/results.md

plots: install ## draw the plots of all result files
	$(BIN)/capaboost plots

bench: install ## measure speed and memory beside peers (about an hour on an idle machine), fill their tables
	set -e; for model in $(MODELS); do for compile in '' --compile; do \
		$(BIN)/python -m benchmarks.step --model $$model $$compile; \
		$(BIN)/python -m benchmarks.inference --model $$model $$compile; \
	done; $(BIN)/python -m benchmarks.parts --model $$model --device cpu; done
	$(BIN)/python -m benchmarks.masks
	$(BIN)/python -m benchmarks.whole_run
	-$(BIN)/python -m benchmarks.sparse # refuses where there are no sparse tensor cores
	$(BIN)/python -m benchmarks.make_tables
	$(BIN)/capaboost plots benchmarks/results

gpu: install ## all that a GPU can tell within TIME=25m, resumable; DATA=DIR pretrains, FLAGS="--device cpu --quick" rehearses
	$(BIN)/python tools/measure_gpu.py --time $(TIME) $(if $(DATA),--data-dir $(DATA)) $(FLAGS)

clean: ## remove the demo's runs, caches and build output; .venv and other runs stay
	rm -rf runs/demo build dist capaboost.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
