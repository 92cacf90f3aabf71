# The commands of the course; `make` alone lists them. GNU make 3.81 (macOS) is enough.

PYTHON ?= python3
VENV ?= .venv
OLDEST_PYTHON ?= python3.10
COLAB_PYTHON ?= python3.13

# TORCH=cpu takes torch from PyTorch's own index of builds without CUDA's libraries.
TORCH ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/$(TORCH)

# What `make lab` opens: a lesson, or the first one of a folder, which is the map of the course.
MAP = notebooks

BIN := $(VENV)/bin
PY := "$(BIN)/python"
STAMP := $(VENV)/.course-installed
MADE := $(VENV)/.course-made-this-venv

# Notebooks start programs by name, so the environment comes first on PATH; by its absolute name, as they
# run in another folder.
export PATH := $(if $(filter /%,$(VENV)),,$(CURDIR)/)$(BIN):$(PATH)

.PHONY: help install lab test units oldest colab run site browser bench grade tables checkpoints address clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "PYTHON=$(PYTHON) makes the environment, VENV=$(VENV) is its folder; give either to change it:"
	@echo "make test PYTHON=python3.12 VENV=/somewhere/else"
	@echo "TORCH=cpu installs a torch without CUDA: a few hundred MB instead of 5 GB on Linux."
	@echo "make oldest takes OLDEST_PYTHON=$(OLDEST_PYTHON) and build/oldest instead, make colab COLAB_PYTHON=$(COLAB_PYTHON)."

install: $(STAMP) ## install the course into VENV, which every other command does by itself

lab: $(STAMP) ## install the course and open its map in JupyterLab; MAP=notebooks/ru for the Russian lessons
	$(PY) -m jupyterlab --LabApp.default_url="/lab/tree/$(firstword $(sort $(wildcard $(MAP)/*.ipynb)) $(MAP))" $(if $(filter 0,$(shell id -u)),--allow-root)

test: $(STAMP) ## install the course, then check style, unit tests and every cell of every notebook
	@echo "make test: style, $(words $(wildcard tests/test_*.py)) files of unit tests, then every cell of" \
		"$(words $(wildcard notebooks/*.ipynb notebooks/*/*.ipynb)) lessons. On two quiet cores it takes 30 minutes" \
		"at most; pytest's percentages tell how far it is."
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

colab: $(STAMP) ## install and run the course beside the versions that Colab has, in build/colab (5 GB)
	$(PY) tests/colab.py "$(COLAB_PYTHON)" build/colab

run: $(STAMP) ## execute every notebook into build/*.html; time, peak memory and result of each
	$(PY) benchmarks/notebooks.py --html build --json build/notebooks.json

# `site` and `browser` need more than a student does.
site: $(STAMP) ## render the course as a static site in build/site
	@$(PY) -c "import myst_nb, furo" 2>/dev/null || $(PY) -m pip install --editable '.[site]'
	$(PY) website/build.py

browser: site ## the lessons and the site in a real browser; screenshots in build/browser
	@$(PY) -c "import playwright" 2>/dev/null || $(PY) -m pip install --editable '.[browser]'
	COURSE_OFFLINE=1 $(PY) -m pytest tests/browser -p no:cacheprovider -rs

# busy.py first: it needs a machine at rest, which the others leave warm.
BENCHMARKS = busy style_transfer upsampling gan generative_timeline diffusion text_to_image editing detection segmentation \
	keypoints reconstruction notebooks

bench: $(STAMP) ## measure everything anew into benchmarks/results/*.json (two hours), then the tables
	@failed=; for name in $(BENCHMARKS); do echo "== $$name"; \
		$(PY) benchmarks/$$name.py --json benchmarks/results/$$name.json || failed="$$failed $$name"; done; \
		$(PY) benchmarks/tables.py; [ -z "$$failed" ] || { echo "bars missed:$$failed" >&2; exit 1; }

grade: $(STAMP) ## release, collect and grade a small class with all that goes wrong, in build/grade
	COURSE_OFFLINE=1 $(PY) tests/sample_course.py build/grade

tables: $(STAMP) ## write the numbers of README, data/README and the lessons from their sources
	$(PY) benchmarks/tables.py

checkpoints: $(STAMP) ## train data/checkpoints anew with every script of recipes/ (hours on a CPU)
	@set -e; for script in $(filter-out recipes/common.py recipes/cat_faces.py,$(sort $(wildcard recipes/*.py))); do echo "== $$script"; $(PY) "$$script"; done

address: ## REPOSITORY=https://github.com/you/yours: write your fork's address everywhere
	"$(PYTHON)" website/address.py "$(REPOSITORY)"

clean: ## remove what make created: build/, caches, and the environment unless it was there before
	rm -rf build .pytest_cache .ruff_cache .hypothesis $(wildcard */__pycache__ */*/__pycache__)
	@if [ -e "$(MADE)" ]; then echo "rm -rf $(VENV)"; rm -rf "$(VENV)"; else rm -f "$(STAMP)"; fi

# The stamp holds the folder that was installed: an environment filled from another clone is filled again.
ifneq ($(shell cat "$(STAMP)" 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

# As pyproject.toml asks for them.
TORCH_PAIR = $(shell grep -Eo '"torch(vision)?>=[0-9.]+"' pyproject.toml | sed "s/\"/'/g")

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
ifneq ($(TORCH),)
	$(PY) -m pip install --index-url "$(TORCH_INDEX)" $(PINS) $(TORCH_PAIR) || { \
		echo "torch could not be installed from $(TORCH_INDEX)." >&2; \
		echo "Is it within reach? Without TORCH=$(TORCH), make takes torch from pip's usual index." >&2; exit 1; }
else
	@$(PY) -c "import torch" 2>/dev/null || [ "$$(uname -s)" != Linux ] || nvidia-smi >/dev/null 2>&1 || { \
		echo "No NVIDIA card found. pip's usual torch brings about 5 GB of CUDA's libraries, which need one;"; \
		echo "make $(or $(MAKECMDGOALS),lab) TORCH=cpu downloads a few hundred MB instead."; }
endif
	$(PY) -m pip install $(PINS) --editable '.[lab,test]'
	@echo '$(CURDIR)' > "$(STAMP)"
