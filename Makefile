# Everything from a fresh machine with Python 3.11+, git and make. `make` alone lists the targets.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo

.PHONY: help demo test slow-test mutation-test coverage cluster-test gpu-test fault-test faults soak bench docs lint install clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(BIN)/.installed  ## make .venv and install wmlsearch with the tested versions

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "wmlsearch needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into .venv (some minutes at the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install  ## the main job on a small phantom: a search, final runs, the verdict (about five minutes)
	@rm -rf $(DEMO)
	$(BIN)/wmlsearch phantom $(DEMO)/raw --patients 34 --timepoints 1 --shape 48x48x16 --lesion-size 3
	$(BIN)/wmlsearch prepare $(DEMO)/raw $(DEMO)/prepared --size 48
	$(BIN)/wmlsearch tune quick --data $(DEMO)/prepared --trials 5 --epochs 16 --grace-epochs 4 --confirm-top 2 --confirm-seeds 1 --final-runs 3 --seed 1 --name demo --out $(DEMO)/runs

test: install  ## the tests, in two processes; prints the slowest ten
	$(BIN)/python -m pytest --durations 10 -n 2 --dist loadfile

slow-test: install  ## the tests that take a minute or more each: whole searches
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

mutation-test: install  ## change the split and the leakage guard in hundreds of ways: a test must fail for each (half an hour)
	$(BIN)/python tests/mutation/run.py

coverage: install  ## test and slow-test, and the lines and branches that they do not reach
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m 'not faults' -n 2 --dist loadfile
	-$(BIN)/coverage combine --quiet  # it cannot read the file of a process that was killed while it wrote
	$(BIN)/coverage report

cluster-test: install  ## the cluster commands on three hosts made of network namespaces (Linux, root)
	@PYTHON=$(BIN)/python tests/cluster/run

gpu-test: install  ## the tests that need GPUs
	$(BIN)/python -m pytest tests/gpu -rs

fault-test: install  ## inject faults at random moments: kills, full disks, a broken MLflow (a quarter of an hour)
	$(BIN)/python -m pytest tests/faults -m faults -rs -n 2

faults: fault-test  ## fault-test, and network faults between the hosts of cluster-test (Linux, root)
	@PYTHON=$(BIN)/python tests/cluster/run -k "starts_all_hosts or network_cut or host_dies or ray_down"

soak: install  ## 300 short trials under random kills, with an MLflow that restarts every minute
	PYTHONPATH=tests $(BIN)/python tests/faults/soak.py

bench: install  ## timings, as ratios within one run (half an hour)
	$(BIN)/python -m benchmarks

docs: install  ## the documentation site, in docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -n -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

lint: install  ## style, security rules and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## remove .venv, the demo and the documentation site
	rm -rf .venv $(DEMO) docs/_build
