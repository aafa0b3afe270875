# make demo    see VMs fork, run and diverge          make check      style, types, layers
# make test    test it, some minutes                 make test-full  with what takes longer, and many more rounds
# make fuzz    throw hostile input at every parser that reads what guests write (ARGS="--seconds 300 archive")
# make compatibility   run the published clients, and write docs/compatibility.md's tables from what they do
# make bench   measure, beside bwrap, runc and Docker; fails when an aim is missed
# Each target makes what it needs: a virtual environment in .venv, and Debian packages, which it names before it installs them.

.DEFAULT_GOAL := help
.PHONY: help setup demo check format test test-full fuzz compatibility bench clean
MAKEFLAGS += --no-print-directory
bin := .venv/bin
tested := tests/unit tests/chaos tests/conformance tests/engine tests/attack tests/faces tests/api tests/fuzz

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

setup: .venv/ready

.venv/ready: pyproject.toml scripts/setup
	@scripts/setup

demo: setup
	@scripts/packages "the network of VMs" nftables || echo "demo: goes on; VMs have no network"
	@$(bin)/python examples/demo.py

check: setup
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports

format: setup
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

test: setup
	@scripts/test -m "not full" $(ARGS) $(tested)

test-full: setup
	@scripts/packages "tests in a machine whose kernel has project quotas" qemu-system-x86 mmdebstrap || echo "test-full: goes on; tests that need them say so"
	@BOXWOOD_TEST_FULL=1 scripts/test $(ARGS) $(tested)

fuzz: setup
	@$(bin)/python -c 'import atheris' 2>/dev/null || $(bin)/python -m pip install --quiet --editable '.[fuzz]' || echo "fuzz: goes on without atheris"
	@$(bin)/python tests/fuzz/run.py $(ARGS)

compatibility: setup
	@BOXWOOD_COMPATIBILITY=write BOXWOOD_TEST_WORKERS=0 scripts/test -q $(ARGS) tests/conformance

bench: setup
	@scripts/packages "the peers of the benchmark, and the network of VMs" bubblewrap runc busybox-static nftables iproute2 || echo "bench: goes on without them"
	@PYTHONPATH=tools $(bin)/python bench/run.py $(ARGS)

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
