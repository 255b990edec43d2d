# `make demo` and `make test` set up what they need in .venv; everything else is for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TYPECHECK := build/typecheck
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/robot_qsft/wheels
DOWNLOAD := $(BIN)/pip download --quiet --no-cache-dir --constraint constraints.txt --dest $(WHEELS)
INSTALL := $(BIN)/pip install --quiet --no-index --find-links $(WHEELS) --constraint constraints.txt

.PHONY: help demo test test-slow lint format picture wheels system-packages clean

help:
	@echo "make demo             mixed demonstrations to a policy that beats them, and a report"
	@echo "make test             the tests, in under 10 minutes"
	@echo "make test-slow        the tests that take longer"
	@echo "make lint             style, types and import layering"
	@echo "make system-packages  what some tests need from the system (uses apt where it may)"
	@echo "make picture          the README's picture, from the report of the last demo"
	@echo "make clean            remove the environment and build products, not runs/"

demo: $(INSTALLED)
	$(BIN)/robot-qsft demo

test: $(INSTALLED) system-packages
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(INSTALLED) system-packages
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target $(TYPECHECK) .
	MYPYPATH=$(TYPECHECK) $(BIN)/mypy -p robot_qsft
	$(BIN)/python -m pytest -q tests/test_layering.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

picture: system-packages
	chromium --headless --no-sandbox --disable-gpu --disable-background-networking \
	--hide-scrollbars --blink-settings=primaryHoverType=2,availableHoverTypes=2 \
	--user-data-dir="$$(mktemp -d)" --window-size=1280,1640 \
	--screenshot=docs/report.png "file://$(CURDIR)/runs/demo/report.html"

# Packages are kept in WHEELS rather than in pip's cache, which is of no use without a network:
# with them there, a fresh clone sets itself up offline.
# torch goes first: with it in place no other package asks the index for a newer build.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -VV | cat - $^ | cmp --silent - $(WHEELS)/kept-for || $(MAKE) --no-print-directory wheels
	$(INSTALL) setuptools torch
	$(INSTALL) --no-build-isolation --editable ".[dev]"
	touch $@

wheels:
	rm -f $(WHEELS)/*.whl $(WHEELS)/*.tar.gz $(WHEELS)/kept-for
	$(DOWNLOAD) "setuptools>=77" torch
	$(INSTALL) setuptools torch
	$(DOWNLOAD) --no-build-isolation ".[dev]"
	$(BIN)/python -VV | cat - pyproject.toml constraints.txt >$(WHEELS)/kept-for

# Tests that need a browser skip with the reason where it is not installed.
system-packages:
	@command -v chromium >/dev/null || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y chromium >/dev/null; } || \
	echo "chromium is not installed: the report is not looked at in a browser"

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
