# `make demo` runs the main job and `make test` passes the tests; each does all its own set-up in a
# local virtual environment. Needs Python 3.11 or newer and a C/C++ compiler, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
SOURCES := pyproject.toml setup.py \
  $(wildcard native/*.pyx native/row/* native/decode/* edge/_native/*.pxd)

.PHONY: demo fleet-demo test gates bench clean

demo: $(VENV)/.runtime
	$(BIN)/edge demo

# A hub, three devices and a rollout that stops itself, in under a minute.
fleet-demo: $(VENV)/.dev
	$(BIN)/edge-hub demo

test: gates
	$(BIN)/python -m pytest -n auto --dist loadfile

gates: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cython-lint native edge/_native
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml \
	  --allowlist native/stubs-allowed.txt edge._native.sampling edge._native.engine

# Every bench, also where an earlier one missed a bar; fails in the end where one did.
bench: $(VENV)/.dev
	@missed=0; for bench in bench/[a-z]*.py; do $(BIN)/python $$bench || missed=1; done; \
	  exit $$missed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edge needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(SOURCES) | $(VENV)/bin/python
	@$(call install,-e .)
	@touch $@

$(VENV)/.dev: $(SOURCES) | $(VENV)/bin/python
	@$(call install,-e '.[dev]')
	@touch $@ $(VENV)/.runtime

clean:
	rm -rf $(VENV) build edge/_native/*.so edge/_native/*.pyd native/*.c edge_runtime.egg-info

# Installs with a line every 20 seconds, because the build of llama-cpp-python says nothing.
define install
echo "Installing edge. The first build of llama-cpp-python takes about 7 minutes on 2 cores."; \
( while sleep 20; do now=$$((now + 20)); echo "  still building after $$now s"; done ) & ticker=$$!; \
$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q $(1); status=$$?; \
kill $$ticker 2>/dev/null; test $$status -eq 0
endef
