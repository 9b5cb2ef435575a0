# Works on a machine with make, git and a python3 of at least 3.11. Another interpreter: make test PYTHON=python3.13
#
## make run       start the built-in echo server and print how to talk to it      (ARGS="--help" for more)
## make test      run the tests                                                   (ARGS="-k datagram" for some)
## make check     lint, formatting, types
## make compat    run CPython's own tests of everything that uses socketserver against sockserve
## make bench     measure against the C floor, stdlib and the peers   (WORK=ping50 MODEL=greenlet ROUNDS=3 for a part)
## make bench-page    write what runs found into the documents    (RESULTS="one/results.json two/results.json")
## make bench-calls   count the system calls of a request, with strace, into docs/explanation/performance-results.md
## make bench-smoke   start everything that `bench` starts, for a few hundred requests each
## make dist      build what would be published, and try it in an environment of its own
## make docs      build the documents as HTML, with every warning an error
## make docs-serve   show them on loopback, served by sockserve          (ADDRESS=tcp://127.0.0.1:8000)
## make coverage  run the tests under coverage, children included, and report it
## make format    format the code and sort the imports
## make clean     remove the environments and whatever the commands above left

PYTHON ?= $(or $(if $(filter bench%,$(MAKECMDGOALS)),$(SYSTEM_PYTHON)),python3)
# A distribution builds its interpreter with profile-guided optimisation, as most that serve have it; pyenv does not.
SYSTEM_PYTHON = $(shell /usr/bin/python3 -c 'import sys; sys.version_info < (3, 11) or print(sys.executable)' 2>/dev/null)
ARGS ?=
RESULTS ?= benchmarks/results/results.json
ADDRESS ?= tcp://127.0.0.1:8000
# program:Debian package; what the tests start as a user would
PROGRAMS ?= chromium:chromium curl:curl dig:bind9-dnsutils haproxy:haproxy ip:iproute2 logger:bsdutils nc:netcat-openbsd \
	nginx:libnginx-mod-stream openssl:openssl redis-benchmark:redis-tools redis-cli:redis-tools systemd-socket-activate:systemd
# gcc alone comes without the headers of the C library.
BENCH_PROGRAMS := ab:apache2-utils cc:build-essential dnsperf:dnsperf redis-benchmark:redis-tools wrk:wrk

VERSION := $(shell $(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 11) or print("%d.%d.%d" % v[:3] + sys.abiflags)' 2>/dev/null)
VENV := .venv-$(VERSION)
IN_VENV := $(VENV)/bin/python
PIP := $(IN_VENV) -m pip --disable-pip-version-check install --quiet

.PHONY: help run test check compat bench bench-calls bench-page bench-smoke docs docs-serve dist coverage format clean environments all-programs programs
# Two targets would install into one environment at the same time.
.NOTPARALLEL:

help:
	@sed -n 's/^## //p' Makefile

run: $(VENV)/made-for-run
	$(IN_VENV) -m sockserve $(ARGS)

# Compiled first: hundreds of Pythons are started, and where PYTHONDONTWRITEBYTECODE is set each would compile it all.
test: $(VENV)/made-for-test programs
	$(IN_VENV) -m compileall -q sockserve tests
	$(IN_VENV) -m pytest $(ARGS)

check: $(VENV)/made-for-lint
	$(IN_VENV) -m ruff check
	$(IN_VENV) -m ruff format --check
	$(IN_VENV) -m mypy
	$(IN_VENV) -m pyright --pythonpath $(IN_VENV)

compat: $(VENV)/made-for-run
	$(IN_VENV) -m compileall -q sockserve tests
	$(IN_VENV) tests/compat/run.py $(ARGS)

# For an ordinary user; in CI a test whose program is missing fails.
test coverage: MAY_LACK_PROGRAMS := yes
bench bench-smoke: PROGRAMS := $(BENCH_PROGRAMS)
bench-calls: PROGRAMS := cc:build-essential strace:strace
# What .ci/run needs, for a machine on which only this is done as root.
all-programs: PROGRAMS := $(PROGRAMS) $(BENCH_PROGRAMS)

# Compiled, as an installer leaves a package: what was compiled at its start has its code all over its memory.
bench: $(VENV)/made-for-bench programs
	$(IN_VENV) -m compileall -q sockserve benchmarks
	$(if $(FREE_THREADED),FREE_THREADED=$(FREE_THREADED)) $(IN_VENV) -m benchmarks $(if $(WORK),--work $(WORK)) $(if $(MODEL),--model $(MODEL)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

bench-page: $(VENV)/made-for-bench
	$(IN_VENV) -m benchmarks.page $(RESULTS)

bench-calls: $(VENV)/made-for-bench programs
	$(IN_VENV) -m benchmarks.calls --write $(ARGS)

bench-smoke: $(VENV)/made-for-bench programs
	$(IN_VENV) -m benchmarks --smoke $(ARGS)

dist: $(VENV)/made-for-dist
	$(IN_VENV) tests/release/run.py

# -E: what was read before says nothing of its warnings again.
docs: $(VENV)/made-for-docs
	$(IN_VENV) -m sphinx -b html -E -W --keep-going -n -q -d build/doctrees docs build/docs
	@echo "Built: build/docs/index.html"

docs-serve: docs
	@echo "Serving the documents on $(patsubst tcp://%,http://%/,$(ADDRESS)); Ctrl-C ends it"
	cd build/docs && ../../$(IN_VENV) ../../examples/web_files.py $(ADDRESS)

coverage: $(VENV)/made-for-test programs
	$(IN_VENV) -m compileall -q sockserve tests
	$(IN_VENV) -m coverage erase
	$(IN_VENV) -m coverage run -m pytest $(ARGS)
	$(IN_VENV) -m coverage combine --quiet
	$(IN_VENV) -m coverage report

format: $(VENV)/made-for-lint
	$(IN_VENV) -m ruff check --select I --fix
	$(IN_VENV) -m ruff format

clean:
	rm -rf .venv-*/ .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist htmlcov
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

# What `test` and `compat` install, so that they can then run side by side: the first's extra brings the second's along.
environments: $(VENV)/made-for-test programs
	@touch $(VENV)/made-for-run

# Each stamp is made last: an environment whose making was interrupted is made again.
$(VENV)/made:
ifeq ($(VERSION),)
	@echo "PYTHON=$(PYTHON) is not a Python of at least 3.11; name one: make PYTHON=python3.13 ..." >&2; exit 1
endif
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(call debian_install,python$(basename $(VERSION))-venv); }
	@echo "Making an environment in $(VENV), some ten seconds"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/made-for-run: $(VENV)/made pyproject.toml
	@echo "Installing sockserve into $(VENV), some ten seconds"
	@$(PIP) --editable .
	@touch $@

$(VENV)/made-for-%: $(VENV)/made pyproject.toml
	@echo "Installing what '$*' needs into $(VENV), up to a minute"
	@$(PIP) --editable '.[$*]'
	@touch $@

# Not every Python has wheels of all the peers; what is missing is left out, and the report says so.
$(VENV)/made-for-bench: $(VENV)/made pyproject.toml
	$(PIP) --only-binary gevent,greenlet,matplotlib,trio,uvloop --editable '.[bench]' || $(PIP) --editable .
	@touch $@

all-programs: programs

programs:
	@missing=$$(for each in $(PROGRAMS); do command -v "$${each%%:*}" >/dev/null || echo "$${each#*:}"; done); \
	if [ -z "$$missing" ]; then :; \
	elif [ -z "$(MAY_LACK_PROGRAMS)" ] || [ "$$CI" = true ] || $(can_install); then $(call debian_install,$$missing); \
	else echo "Left out are the tests that need:" $$missing "(to have them: sudo apt-get install "$$missing")"; fi

can_install = { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

define debian_install
set -e; packages=$$(echo $(1)); \
	if ! $(can_install); then \
		echo "Missing on this machine (names of Debian packages): $$packages" >&2; exit 1; \
	fi; \
	echo "Installing $$packages"; \
	apt-get update -qq; \
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $$packages >/dev/null
endef
