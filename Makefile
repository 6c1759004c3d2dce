# Two commands do all the set-up on a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint requirements.lock
# Byte code is made on all cores and kept, whatever the environment says: without it every start of a command, and every worker of
# pytest, would compile what it imports.
COMPILE := $(BIN)/python -m compileall -q -j 0 -x /tests/ .venv/lib loadtest
export PYTHONDONTWRITEBYTECODE :=

# Tests of processes and clocks wait half of their time.
WORKERS := $(shell expr 2 '*' $$(nproc))

.PHONY: demo install lint test test-statistics test-newcomer test-wheel test-documents test-image engines test-engines benchmark peers benchmark-peers fuzz soak test-namespaces test-dashboard frontier dist clean

demo: .venv/runtime
	$(BIN)/loadtest demo

install: .venv/runtime

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --quiet --numprocesses $(WORKERS) --dist loadfile

# Coverage of every 95 % interval, and the rates of false and of missed verdicts, over 1,000 simulated runs each (a minute).
test-statistics: .venv/dev
	$(BIN)/python -m pytest --quiet --numprocesses auto --dist loadgroup tests/intervals

# What a stranger does: the wheel outside any checkout, the demo, every command of the documents.
test-newcomer: test-wheel test-documents

test-wheel: .venv/dev
	tests/newcomer/try_wheel.sh $(TRY_PYTHONS)

test-documents: .venv/dev
	$(BIN)/python -m pytest --quiet --numprocesses auto tests/newcomer

# The image of the load generator and compose's commands: built by podman without a daemon, and run (root, a base of Debian's packages
# or `make test-image BASE=IMAGE`). What this machine cannot do is skipped with the reason.
test-image: .venv/dev
	tests/images/install.sh
	$(PIP) podman-compose==1.5.0
	$(BIN)/python -m pytest --quiet --timeout 3600 tests/images

# Real vLLM and real SGLang on the CPU, each in an environment of its own (about 5 GB, 3 minutes).
engines:
	tests/engines/install.sh model
	tests/engines/install.sh vllm
	tests/engines/install.sh sglang sglang-image
	-tests/engines/install.sh router

# Both engines at a time, the tests of each in a process of their own.
test-engines: .venv/dev engines
	$(BIN)/python -m pytest --quiet --numprocesses 2 --durations 12 tests/engines

# The parsers of what a server or a study may say, fuzzed by coverage, then finished run folders, damaged at random:
# `make fuzz`, or `make fuzz SECONDS=600 FOLDERS=10000`.
SECONDS ?= 60
FOLDERS ?= 1000
fuzz: .venv/dev
	$(PIP) atheris==3.0.0
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)
	$(BIN)/python -m tests.fuzz.folders --folders $(FOLDERS)

# An hour of long replies, 5 % of them from a server that misbehaves: `make soak`, or `make soak MINUTES=10 STREAMS=16 TOKENS=1000`.
MINUTES ?= 60
STREAMS ?= 64
TOKENS ?= 8000
soak: .venv/dev
	$(BIN)/python -m tests.soak --duration $$((60 * $(MINUTES))) --streams $(STREAMS) --tokens $(TOKENS)

# A master and four workers on hosts of their own, one killed, one with a slow link (root; skipped where that is not permitted).
test-namespaces: .venv/dev
	$(BIN)/python -m pytest --quiet -rs tests/benchmarks/test_namespaces.py

# The queries of launchers/grafana/dashboard.json in a real Prometheus (skipped where none is installed).
test-dashboard: .venv/dev
	$(BIN)/python -m pytest --quiet -rs tests/benchmarks/test_prometheus.py

benchmark: .venv/dev
	$(BIN)/python -m tests.benchmarks

# What one core can measure, drawn (a quarter of an hour).
frontier: .venv/dev
	$(BIN)/python tests/benchmarks/frontier.py --chart docs/frontier.svg

# Other tools, each in an environment of its own, and the same server of known times in front of all (6 GB beside the runtimes, 90 minutes).
peers: engines
	tests/benchmarks/peers/install.sh

benchmark-peers: .venv/dev peers
	$(BIN)/python tests/benchmarks/peers.py
	$(BIN)/python tests/benchmarks/peers.py --requests 96 --tokens 2000 --gap 0
	$(BIN)/python tests/benchmarks/peers.py --concurrency 256 --requests 512 --tokens 100 --gap 0.05
	$(BIN)/python tests/benchmarks/peers.py --concurrency 1000 --requests 2000 --tokens 100 --gap 0.05
	$(BIN)/python tests/benchmarks/killed.py

dist: .venv/bin/python
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "loadtest needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/runtime: .venv/bin/python pyproject.toml requirements.lock
	$(PIP) --editable .
	$(COMPILE)
	touch $@

.venv/dev: .venv/runtime
	$(PIP) --editable '.[dev]'
	$(COMPILE)
	touch $@
