# The commands of the course; `make` alone lists them. GNU make 3.81 (macOS) is enough.

PYTHON ?= python3
VENV ?= .venv
OLDEST_PYTHON ?= python3.10

BIN := $(VENV)/bin
PY := "$(BIN)/python"
STAMP := $(VENV)/.course-installed
MADE := $(VENV)/.course-made-this-venv

# Notebooks start programs by name, so the environment comes first on PATH; by its absolute name, as they
# run in another folder.
export PATH := $(if $(filter /%,$(VENV)),,$(CURDIR)/)$(BIN):$(PATH)

.PHONY: help lab test units oldest run bench tables checkpoints clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "PYTHON=$(PYTHON) makes the environment, VENV=$(VENV) is its folder; give either to change it:"
	@echo "make test PYTHON=python3.12 VENV=/somewhere/else"
	@echo "make oldest takes OLDEST_PYTHON=$(OLDEST_PYTHON) and build/oldest instead."

lab: $(STAMP) ## install the course and open it in JupyterLab
	$(PY) -m jupyterlab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

test: $(STAMP) ## install the course, then check style, unit tests and every cell of every notebook
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	COURSE_OFFLINE=1 $(PY) -m pytest tests notebooks --nbval-lax --nbval-current-env --nbval-cell-timeout=600

# What `oldest` runs in its environment.
units: $(STAMP)
	COURSE_OFFLINE=1 $(PY) -m pytest tests

oldest: build/oldest.txt ## the unit tests with the oldest Python and packages allowed, installed in build/oldest
	$(MAKE) units PYTHON="$(OLDEST_PYTHON)" VENV=build/oldest PINS="--constraint build/oldest.txt"

# Every lower bound of pyproject.toml as the only version, for pip.
build/oldest.txt: pyproject.toml
	@mkdir -p build
	grep -Eo '"[a-z][a-z0-9-]*>=[0-9.]+"' pyproject.toml | sed 's/"//g; s/>=/==/' | sort -u > $@

run: $(STAMP) ## execute every notebook into build/*.html; time, peak memory and result of each
	$(PY) benchmarks/notebooks.py --html build --json build/notebooks.json

# busy.py first: it needs a machine at rest, which the others leave warm.
BENCHMARKS = busy style_transfer upsampling gan generative_timeline diffusion detection segmentation keypoints reconstruction notebooks

bench: $(STAMP) ## measure everything anew into benchmarks/results/*.json (two hours), then the tables
	@failed=; for name in $(BENCHMARKS); do echo "== $$name"; \
		$(PY) benchmarks/$$name.py --json benchmarks/results/$$name.json || failed="$$failed $$name"; done; \
		$(PY) benchmarks/tables.py; [ -z "$$failed" ] || { echo "bars missed:$$failed" >&2; exit 1; }

tables: $(STAMP) ## write the numbers of README, data/README and the lessons from their sources
	$(PY) benchmarks/tables.py

checkpoints: $(STAMP) ## train data/checkpoints anew with every script of recipes/ (hours on a CPU)
	@set -e; for script in $(filter-out recipes/common.py recipes/cat_faces.py,$(sort $(wildcard recipes/*.py))); do echo "== $$script"; $(PY) "$$script"; done

clean: ## remove what make created: build/, caches, and the environment unless it was there before
	rm -rf build .pytest_cache .ruff_cache .hypothesis $(wildcard */__pycache__ */*/__pycache__)
	@if [ -e "$(MADE)" ]; then echo "rm -rf $(VENV)"; rm -rf "$(VENV)"; else rm -f "$(STAMP)"; fi

# The stamp holds the folder that was installed: an environment filled from another clone is filled again.
ifneq ($(shell cat "$(STAMP)" 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

# pip 22.3 is the first that installs into another environment, which a test does.
$(STAMP): pyproject.toml
	@rm -f "$(STAMP)"
	@python=$(PY); [ -x "$$python" ] || python="$(PYTHON)"; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "The course needs Python 3.10 or newer; $$python is $$("$$python" --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=python3.12 VENV=a-new-folder" >&2; exit 1; }
	@if [ ! -e "$(VENV)" ]; then mkdir -p "$(VENV)" && touch "$(MADE)"; fi
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv "$(VENV)"
	$(PY) -m pip install 'pip>=22.3'
	$(PY) -m pip install $(PINS) --editable '.[lab,test]'
	@echo '$(CURDIR)' > "$(STAMP)"
