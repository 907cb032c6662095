# Everything happens inside .venv, with the versions of constraints.txt. `make PYTHON=/path/to/python3.12` picks an interpreter.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SYSTEM_PACKAGES := bubblewrap clang lld wasi-libc libclang-rt-14-dev-wasm32 nodejs munge slurm-client slurmctld slurmd iproute2 nftables
BENCHES := dht bulk control dispatch idle catalogue
ARGS ?=
PYTHON ?=

.PHONY: install demo test test-slow lint format bench bench-peers experiments vectors constraints system-packages clean

install: $(VENV)/installed-dev
	@echo "ready: $(BIN)/ioc-node --help, $(BIN)/ioc-testnet --help; or make demo, make test"

demo: $(VENV)/installed-demo
	@$(BIN)/ioc-testnet demo $(ARGS)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow --timeout 1800 $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One after the other, never side by side: they would measure each other.
bench: $(VENV)/installed-dev
	@set -e; for name in $(BENCHES); do echo "== bench.$$name"; $(BIN)/python -m bench.$$name $(ARGS); done

bench-peers: $(VENV)/installed-dev
	$(BIN)/python bench/peers/setup.py $(ARGS)

# What docs/experiments shows, made again: more than an hour. IOC_LATENCY_FILE names a matrix of round trips.
experiments: $(VENV)/installed-dev
	$(BIN)/ioc-testnet sim experiments $(if $(IOC_LATENCY_FILE),--latency $(IOC_LATENCY_FILE)) $(ARGS)

# The golden vectors and the generated tables of wire/SPEC.md.
vectors: $(VENV)/installed-dev
	$(BIN)/python wire/vectors/generate.py

# A dev install takes the place of a demo install: it contains matplotlib too.
$(VENV)/installed-dev: $(INPUTS) | $(BIN)/pip
	@echo "installing ioc-node and its development tools into $(VENV) (about a minute the first time)"
	@$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $(VENV)/installed-demo $@

$(VENV)/installed-demo: $(INPUTS) | $(BIN)/pip
	@echo "installing ioc-node into $(VENV) (about a minute the first time)"
	@$(PIP_INSTALL) -c constraints.txt -e '.[demo]'
	@touch $@

# A pyenv shim may exist and still not run, so a candidate counts only if it says its version.
$(BIN)/pip:
	@found=""; \
	for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    found="$$candidate"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "error: no Python 3.11 or newer on the PATH; install one, or run make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	if ! "$$found" -c 'import venv, ensurepip' >/dev/null 2>&1; then \
	  echo "error: $$found cannot make a virtual environment (no ensurepip); on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  exit 1; fi; \
	echo "making $(VENV) with $$("$$found" -c 'import sys; print(sys.executable, sys.version.split()[0])')"; \
	"$$found" -m venv --clear $(VENV)

# Refresh the tested versions: what a fresh environment gets today from pyproject.toml alone. Run make test afterwards.
constraints:
	@$(MAKE) --no-print-directory VENV=out/constraints-venv out/constraints-venv/bin/pip
	out/constraints-venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@{ echo "# Exact versions that this project was tested with; make installs with them."; \
	   echo "# Made by 'make constraints' (a fresh environment, '.[dev]', pip freeze); then run 'make test'."; \
	   out/constraints-venv/bin/python -m pip freeze --exclude-editable; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt
	@rm -rf out/constraints-venv

# For the process executor (bubblewrap), the test that rebuilds the example programs, and the cluster that the Slurm tests start.
# Only what is missing, only as root.
system-packages:
	@if ! command -v apt-get >/dev/null 2>&1; then echo "system-packages: no apt-get here, nothing done"; exit 0; fi; \
	missing=""; \
	for package in $(SYSTEM_PACKAGES); do \
	  dpkg-query -W -f '$${Status}' "$$package" 2>/dev/null | grep -q '^install ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then echo "system-packages: all there"; exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "system-packages: missing$$missing; run as root: make system-packages"; exit 0; fi; \
	echo "system-packages: installing$$missing"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq </dev/null && apt-get install -y -qq --no-install-recommends $$missing </dev/null >/dev/null

clean:
	rm -rf $(VENV) .bench-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
