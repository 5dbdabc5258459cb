# Everything runs in .venv; the only prerequisites are Python >= 3.11, a C++ compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*/*.h csrc/*/*.cu)

.PHONY: demo test check bench report docs clean

demo: $(VENV)/.demo  ## pre-train STC on real fingerspelling and show what it learned
	$(BIN)/slrfast demo

test: $(VENV)/.dev  ## the whole test suite
	$(BIN)/pytest -q -n 2 $(PYTEST_FLAGS)

check: $(VENV)/.dev  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.report --check

bench: $(VENV)/.dev  ## every benchmark against its baselines, into benchmarks/results
	$(BIN)/pytest benchmarks --benchmark-only -q
	! grep -qs avx2 /proc/cpuinfo || SLRFAST_CPU_ISA=avx2 $(BIN)/python -m benchmarks.systems.stc_loss

report: $(VENV)/.dev  ## tables and pictures of README and docs/ from benchmarks/results
	$(BIN)/python -m benchmarks.report

docs: $(VENV)/.dev  ## the site, into build/docs; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -d build/docs-trees docs build/docs

clean:
	rm -rf $(VENV) build slrfast/*.so

$(VENV)/.dev: EXTRAS = dev,triton,pose,video,text
$(VENV)/.demo: EXTRAS = demo
$(VENV)/.dev $(VENV)/.demo: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@
