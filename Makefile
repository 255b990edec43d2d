# `make demo` and `make test` set up what they need in .venv; everything else is for developers.
PYTHON ?= python3
VENV := .venv
EXTRAS := dev
WITHOUT_DEPENDENCIES := openpi-client
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TYPECHECK := build/typecheck
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/robot_qsft/wheels
DOWNLOAD := $(BIN)/pip download --quiet --no-cache-dir --constraint $(CONSTRAINTS) --dest $(WHEELS)
INSTALL := $(BIN)/pip install --quiet --no-index --find-links $(WHEELS) --constraint $(CONSTRAINTS)

# robosuite needs numpy 1 and so an environment of its own; all else is tested with numpy 2.
ROBOSUITE := $(MAKE) --no-print-directory VENV=.venv-robosuite EXTRAS=robosuite,test \
	WITHOUT_DEPENDENCIES= \
	CONSTRAINTS=constraints-robosuite.txt WHEELS=$(WHEELS)-robosuite
ROBOSUITE_TESTS := $(wildcard tests/test_robosuite_*.py) tests/test_format_table.py

.PHONY: help demo test test-slow lint format picture wheels system-packages clean robosuite test-robosuite

help:
	@echo "make demo             mixed demonstrations to a policy that beats them, and a report"
	@echo "make test             the tests, in under 10 minutes"
	@echo "make test-slow        the tests that take longer"
	@echo "make robosuite        .venv-robosuite, an environment with robosuite"
	@echo "make lint             style, types and import layering"
	@echo "make system-packages  what some tests need from the system (uses apt where it may)"
	@echo "make picture          the README's picture, from the report of the last demo"
	@echo "make clean            remove the environment and build products, not runs/"

demo: $(INSTALLED)
	$(BIN)/robot-qsft demo

test: $(INSTALLED) system-packages
	$(BIN)/python -m pytest -n 2 -m "not slow"
	$(ROBOSUITE) test-robosuite

test-robosuite: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ROBOSUITE_TESTS)

robosuite:
	$(ROBOSUITE) .venv-robosuite/.installed

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
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -VV | cat - $^ | cmp --silent - $(WHEELS)/kept-for || $(MAKE) --no-print-directory wheels
	$(INSTALL) setuptools torch
	$(INSTALL) --no-build-isolation --editable ".[$(EXTRAS)]"
	$(if $(WITHOUT_DEPENDENCIES),$(INSTALL) --no-deps $(WITHOUT_DEPENDENCIES))
	touch $@

wheels:
	rm -f $(WHEELS)/*.whl $(WHEELS)/*.tar.gz $(WHEELS)/kept-for
	$(DOWNLOAD) "setuptools>=77" torch
	$(INSTALL) setuptools torch
	$(DOWNLOAD) --no-build-isolation ".[$(EXTRAS)]"
	$(if $(WITHOUT_DEPENDENCIES),$(DOWNLOAD) --no-deps $(WITHOUT_DEPENDENCIES))
	$(BIN)/python -VV | cat - pyproject.toml $(CONSTRAINTS) >$(WHEELS)/kept-for

# Tests that need a browser or OpenGL skip with the reason where it is not installed.
PACKAGES := chromium libegl1 libgl1-mesa-dri libosmesa6
system-packages:
	@dpkg-query --show $(PACKAGES) >/dev/null 2>&1 || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && \
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y $(PACKAGES) >/dev/null; } || \
	echo "not all of $(PACKAGES) are installed: tests of pages and of rendering may skip"

clean:
	rm -rf .venv .venv-robosuite build .pytest_cache .mypy_cache .ruff_cache .hypothesis
