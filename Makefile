# Every target sets up what it needs in .venv, on a machine with only Python 3.11+ and make.
#
#   make demo      train a small real classifier and talk to it
#   make test      all tests (arguments for pytest: make test ARGS='-k tokenizer -x')
#   make check     formatting, lint, types, the rules of the house
#   make format    put the code into the house's format
#   make sanitize  the native encoder under the compiler's sanitizers, with random shapes
#   make build     wheel and source archive in dist/
#   make clean     remove .venv, dist/ and caches
#
# PYTHON=python3.13         the interpreter that .venv is made from
# TORCH_INDEX=URL           one more package index, for another build of PyTorch. On Linux the
#                           default build carries CUDA (several GB); a machine without a GPU is
#                           better off with TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
ARGS ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# One thread a test process: several processes with all cores each only get in each other's way.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help demo test check format sanitize build clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed-demo
	$(BIN)/filbert demo $(ARGS)

test: $(VENV)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Memory errors and undefined behaviour, then races. Without AMX its instructions are plain, slow code.
sanitize:
	mkdir -p build
	plain=; grep -qsw amx_bf16 /proc/cpuinfo || plain='-include tests/native/amx.hpp'; \
	for source in fuzz fuzz_train fuzz_write; do for kind in address,undefined thread; do \
	for units in TILES VECTORS; do \
		more=; rounds=200; \
		if [ $$units = TILES ] && [ "$$plain" ]; then more=$$plain; rounds=5; fi; \
		$(CXX) -O1 -g -std=c++17 -fsanitize=$$kind -pthread -DFILBERT_$$units \
			$$more tests/native/$$source.cpp -o build/fuzz && \
		UBSAN_OPTIONS=halt_on_error=1 build/fuzz $$rounds || exit 1; \
	done; done; done

build: $(VENV)/.installed-dev
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find filbert tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written after its step succeeded, so that an interrupted step is done again.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "filbert needs Python 3.11 or newer; make was given PYTHON=$(PYTHON)." >&2; \
		echo "Name another one, for example: make PYTHON=python3.13 ..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
		echo "No virtual environment could be made. On Debian and Ubuntu:" >&2; \
		echo "  sudo apt install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.made pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev,demo,pretrain,tasks,tensorboard]'
	@touch $@ $(VENV)/.installed-demo
