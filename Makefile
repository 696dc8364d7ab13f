# Every target sets up what it needs; none needs another one called before it.
# PYTHON=/path/to/python3.13 chooses the interpreter, SERVE="--flags" adds to `make serve`.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup demo test verify selftest mutation-score vulncheck mutants race vm-test box vagrant-test lint certs serve proto proto-check lock load soak clean

BIN := .venv/bin
# Fails if the program leaves a process behind. Broken servers do: what they leave is only ended.
GUARD = $(BIN)/python -m harness.host.leftovers
# Two for each of two processors, since half of the time tests wait; who is idle takes others' tests.
WORKERS = -n 4 --dist worksteal

# They would run another checkout's code, or lead `cd proto` to another folder.
unexport CDPATH PYTHONHOME PYTHONPATH
# Without compiled files each program that the tests start would compile hundreds of modules again.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make .venv from the lock file, hashes checked
	@.ci/setup

demo: setup certs ## Run a real job on a real server and stream it twice, start to end
	@.ci/demo

test: setup ## Unit and integration tests: real processes, real TLS, real sockets
	@$(GUARD) $(BIN)/python -m pytest $(WORKERS) -m "not vm and not vagrant and not mutants" $(ARGS)

verify: setup ## Judge the server: lint, tests, every check, in Vagrant's machine or a guest (ARGS=--full)
	@$(BIN)/python -m harness verify $(ARGS)

selftest: setup ## Judge the judge: break the server in every way known, see each noticed
	@$(GUARD) --tolerate $(BIN)/python -m harness selftest $(ARGS)

mutation-score: setup ## Measure the judge: change random places of the code, count what is noticed
	@$(GUARD) --tolerate $(BIN)/python -m harness mutation-score $(ARGS)

vulncheck: setup ## Audit the locked packages: clean, found, or not audited
	@$(BIN)/python -m harness vulncheck $(ARGS)

mutants: setup ## Break the code on purpose, in more than 150 ways, and see the unit tests notice
	@$(GUARD) --tolerate $(BIN)/python -m pytest -n 2 -m mutants $(ARGS)

race: setup ## Search for races, prove that planted ones are found, watch a busy server (8 minutes)
	@$(BIN)/python -m harness races all $(ARGS)

vm-test: setup ## Prove the guest, and the limits in it (the first time: builds its image, 1 minute)
	@$(BIN)/python -m pytest -m vm $(ARGS)
ifdef AFTER_VERIFY
	@echo 'left out: the limits, which `make verify` has judged; `make vm-test` alone judges them'
else
	@$(BIN)/python -m harness check --target vm --area limits --allow-skip none
endif

box: setup ## Build the project's own Vagrant box for libvirt, and a catalogue that offers it (2 minutes)
	@$(BIN)/python -m harness vm box $(ARGS)

vagrant-test: setup ## Prove `vagrant up && make verify`, as an unprivileged user (root, apt, 10 minutes)
	@$(BIN)/python -m pytest -m vagrant -o faulthandler_timeout=0 $(ARGS)

lint: setup proto-check ## Style, types, protocol, layout
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy impl harness loadtests tests

certs: ## Make or renew the certificates in certs/out, and say when each expires
	@certs/make-certs

serve: setup certs ## Serve on localhost:50051 until Ctrl-C (cgroup v2 and root, or SERVE=--no-limits)
	@$(BIN)/worker-service serve $(SERVE)

soak: setup ## Work a server for hours, and judge that it does not grow (ARGS="--hours 1")
	@$(GUARD) $(BIN)/python -m harness soak $(ARGS)

load: setup ## Measure streaming under ten loads, with a report (a minute and a half)
	@$(BIN)/python -m loadtests run $(ARGS)

proto: setup ## Generate the code beside proto/jobworker/v1/jobworker.proto anew
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto \
		--grpc_python_out=proto proto/jobworker/v1/jobworker.proto

proto-check: setup ## Hold the protocol against its style and against the original's
	@cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against ../tests/proto/original

lock: setup ## Resolve the dependencies anew into requirements.lock
	@$(BIN)/uv pip compile --quiet --upgrade --python-version 3.12 --universal --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header \
		--group dev --extra metrics pyproject.toml -o requirements.lock

clean: ## Remove what the other targets made, certificates included
	@rm -rf .venv .venv-* certs/out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
