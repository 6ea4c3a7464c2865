# Any target sets up .venv first, once; after that it starts at once, without network. See scripts/setup.

BIN := .venv/bin
# named after this place: a .venv that was copied along with a clone does not count as installed
INSTALLED := .venv/installed-$(shell pwd -P | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: corpus hangs help demo test test-slow fuzz fuzz-readers soak-sim smoke-torch litmus lint types layers check-all bench pictures clean collect-hangs soak week frameworks subsets
.NOTPARALLEL:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## the whole line once, on this machine
	$(BIN)/genlock demo

test: $(INSTALLED) ## the tests, two files at a time; their report is evidence for genlock audit
	$(BIN)/pytest -n 2 --dist loadfile --junitxml=build/tests.xml

test-slow: $(INSTALLED) ## the tests of the largest state spaces, some ten minutes
	$(BIN)/pytest -m slow

fuzz: $(INSTALLED) ## random networks searched in every way, for hours; NETWORKS=n FIRST=seed; result into docs/results
	PYTHONPATH=tests/support $(BIN)/python tests/support/networks/fuzz.py --networks $(or $(NETWORKS),200000) \
	  --first $(or $(FIRST),0) --spin 500 --out docs/results

hangs: $(INSTALLED) ## hangs whose truth is known, beside torch's analyser, half an hour; FIRST=seed LAST=seed DATA=folder CASES=folder; tables into docs/results
	@set -e; for seed in $$(seq $(or $(FIRST),3000) $(or $(LAST),3029)); do \
	  [ -e build/hangs/$$seed-$$seed.jsonl ] || $(BIN)/python bench/hangs.py --seeds $$seed $$seed --rows build/hangs \
	  > build/hangs.txt || [ -e build/hangs/$$seed-$$seed.jsonl ]; done
	$(BIN)/python bench/hangs.py --rows build/hangs --report --out docs \
	  $(if $(DATA),--data $(DATA)) $(if $(CASES),--cases $(CASES))

fuzz-readers: $(INSTALLED) ## damaged files for each reader, guided by coverage; SECONDS=n for each; result into docs/results
	$(BIN)/pip install -qq --editable '.[fuzz]'
	PYTHONPATH=tests/support:tests/support/reader_fuzz:tests/support/simulated_hangs \
	  $(BIN)/python tests/support/reader_fuzz/fuzz_readers.py --seconds $(or $(SECONDS),300) --out docs/results

subsets: $(INSTALLED) ## parts of recorded hangs, DATA=folder (ONLY=recording), or of simulated ones; goes on where it was; result into docs/results
	PYTHONPATH=tests/support:tests/support/simulated_hangs $(BIN)/python tests/support/simulated_hangs/subsets.py \
	  $(if $(DATA),--data $(DATA) $(if $(ONLY),--only $(ONLY)),$(or $(FIRST),3000) $(or $(LAST),3029) --all) $(if $(ONLY),,--out docs/results)

collect-hangs: $(INSTALLED) ## collects and replays real gloo hangs of every launcher, some minutes; result into docs/results
	$(BIN)/pip install -qq --editable '.[collect]'
	PYTHONPATH=tests/support $(BIN)/python tests/support/collect_hangs.py

corpus: $(INSTALLED) ## records the runs of traces/corpus anew, some four minutes
	PYTHONPATH=tests/support:tests/support/processes $(BIN)/python tests/support/make_corpus.py

soak: $(INSTALLED) ## a thousand ranks that stall at random moments, under guardians; result into docs/results; STALLS=n
	PYTHONPATH=tests/support $(BIN)/python tests/support/stall_soak.py --stalls $(or $(STALLS),1000) --out docs/results

week: $(INSTALLED) ## a job of 10 million operations a rank within a cap, healthy and broken, some minutes; result into docs/results
	PYTHONPATH=tests/support $(BIN)/python tests/support/week.py --operations $(or $(OPERATIONS),10000000) --out docs/results

soak-sim: $(INSTALLED) ## a million simulated schedules; goes on from FIRST=seed, SCHEDULES=n of them
	PYTHONPATH=tests/support $(BIN)/python tests/support/soak_sim.py --schedules $(or $(SCHEDULES),1000000) --first $(or $(FIRST),0)

smoke-torch: ## the control plane's tests with another torch: make smoke-torch VERSION=2.12.0
	@scripts/smoke_torch $(VERSION)

frameworks: $(INSTALLED) ## frameworks recorded and broken, in an environment of their own, two hours; goes on where it was; ONLY=ddp,ray WAYS=ok,kill MOST=n
	@ONLY="$(ONLY)" WAYS="$(WAYS)" MOST="$(MOST)" scripts/frameworks

litmus: $(INSTALLED) ## each litmus program ten times on real gloo ranks
	$(BIN)/python -m genlock.impl.litmus --repeat 10 --jobs 4

lint: $(INSTALLED) ## style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED) ## types, strictly
	$(BIN)/mypy

layers: $(INSTALLED) ## which module may import which
	$(BIN)/lint-imports

check-all: ## what CI does: lint, types, layers, test, demo
	@.ci/run

bench: $(INSTALLED) ## every program in bench/
	@set -e; for program in bench/*.py; do \
	  [ -e "$$program" ] || continue; echo "--- $$program"; $(BIN)/python "$$program"; done

pictures: $(INSTALLED) ## every picture of the documents, into docs/pictures
	$(BIN)/python scripts/pictures.py

clean: ## remove all that these targets made, .venv too
	rm -rf .venv build dist *.egg-info traces/*.so impl/recording/*.so out genlock-demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml scripts/setup traces/_fast_recorder.c traces/fast_recorder.h impl/recording/_c10d_kernel.cpp
	@scripts/setup
	@touch $@
