# `make demo` and `make test` are the two commands a newcomer needs; both make their own environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO := out/demo
# Idle OpenMP threads sleep instead of spinning: on a busy machine that is the difference of minutes.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test test-full lint clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/installed: setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# A marker, not the folder: a bundle is exported again when what makes it has changed.
out/.demo_bundle: .venv/installed $(wildcard selva_ref/*.py selva_ref/data/*/* export/selva_export/*.py)
	@rm -rf out/demo_bundle
	$(BIN)/selva-export --preset demo --random-weights --out out/demo_bundle
	@touch $@

demo: out/.demo_bundle  ## stems for the example video, from the demo model
	@rm -rf $(DEMO)
	$(BIN)/selva-generate examples/street.mp4 -p "ball bouncing" -p "lamp beeping" \
		--bundle out/demo_bundle --mux 1 --mux 2 -o $(DEMO)

lint: .venv/installed  ## ruff, and mypy --strict on the runtime
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint and the whole suite
	$(BIN)/python -m pytest -m "not full_size"

test-full: .venv/installed  ## exports and stems at official widths: 12 GB of disk, half an hour
	$(BIN)/python -m pytest -m full_size

clean:  ## remove what the commands made (not .venv)
	rm -rf out build dist *.egg-info
