# `make demo` and `make test` are the two commands a newcomer needs; both make their own environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO := out/demo
MUTANTS := out/mutants
# One module of them: make mutants ONLY='selva_runtime.media.audio.*'
ONLY :=
# Idle OpenMP threads sleep instead of spinning: on a busy machine that is the difference of minutes.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test test-full test-hosts host-packages attack mutants lint docs clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/installed: setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/installed  ## two stems and the mix of one scene from the demo models, and a picture of them
	@rm -rf $(DEMO)
	$(BIN)/selva-generate examples/street.mp4 -p "ball bouncing" -p "lamp beeping" --mux 1 --mux 2 --bed demo_mmaudio -o $(DEMO)
	@$(BIN)/python examples/show_stems.py examples/street.mp4 $(DEMO)/stems.png \
		ball=$(DEMO)/ball-bouncing.wav lamp=$(DEMO)/lamp-beeping.wav all=$(DEMO)/bed.wav

lint: .venv/installed  ## ruff, and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Not --quiet: mkdocs counts only the warnings that it prints.
docs: .venv/installed  ## the documentation, in out/site; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

test: lint docs  ## lint, the documentation and the whole suite
	$(BIN)/python -m pytest -m "not full_size and not hosts" --numprocesses auto --maxprocesses 8 --dist loadfile

test-full: .venv/installed  ## exports and stems at official widths: 12 GB of disk, half an hour
	$(BIN)/python -m pytest -m full_size

# Blender as a module needs Python 3.11 and 1.3 GB. The rest comes from Debian's packages.
HOST_PACKAGES := blender xvfb xauth xdotool imagemagick dpf-source g++ ardour jalv jackd2 lilv-utils melt

.venv-hosts/installed:
	@rm -rf .venv-hosts
	$(PYTHON) -m venv .venv-hosts
	.venv-hosts/bin/pip install --quiet --disable-pip-version-check bpy==5.0.1 dawdreamer==0.9.0 pedalboard==0.9.26
	.venv-hosts/bin/python -c 'import bpy'  # it needs libraries of the system: those of Debian's package blender
	@touch $@

host-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; \
		then apt-get install --yes --quiet --no-install-recommends $(HOST_PACKAGES); \
		else echo "not root on Debian: what of these is not installed is not run: $(HOST_PACKAGES)"; fi

test-hosts: .venv/installed  ## the hosts themselves: installs them, runs them, and says what was not run
	-@$(MAKE) --keep-going host-packages .venv-hosts/installed
	$(BIN)/python -m pytest -m "hosts or melt" -rs
	@echo "Not run, because no package installs them: REAPER, DaVinci Resolve, Premiere, Media Composer, Pro Tools, Final Cut,"
	@echo "Cubase, Live, Logic, Bitwig; nothing on Windows or macOS. docs/scripts.md and docs/plugin.md say what stands in for them."

attack: .venv/installed  ## a thousand attacks of each kind: some hours; ATTACKS=100 for fewer
	SELVA_ATTACKS=$(or $(ATTACKS),1000) $(BIN)/python -m pytest tests/test_attack_*.py

mutants: .venv/installed  ## change the runtime's code in a thousand places, and list what no fast test notices; hours
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	@rm -rf $(MUTANTS) && mkdir -p $(MUTANTS)/bundles
	@ln -s ../../runtime/selva_runtime ../../runtime/selva_bundle ../../tests ../../pyproject.toml $(MUTANTS)/
	cd $(MUTANTS) && export SELVA_TEST_BUNDLES=$(CURDIR)/$(MUTANTS)/bundles OMP_NUM_THREADS=1 && \
		$(abspath $(BIN))/mutmut run $(ONLY) && $(abspath $(BIN))/mutmut results

clean:  ## remove what the commands made (not .venv)
	rm -rf out build dist *.egg-info
