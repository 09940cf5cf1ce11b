# The front door: `make demo`, `make test`. Every target installs what is missing first
# (scripts/bootstrap: Debian packages, as root or through sudo).
JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 60
MODELS := $(CURDIR)/models
VENV := $(CURDIR)/build/venv

.PHONY: build package test test-models demo bench check format stubs fuzz asan tsan bootstrap bootstrap-check clean

build: bootstrap
	@mkdir -p build; cmake --preset release > build/configure.log 2>&1 || { cat build/configure.log; exit 1; }
	@cmake --build build -j$(JOBS)

# build, and from the same objects the extension of the Python package, where there is an environment
# for it or one can be made (which takes a network).
package: bootstrap
	@mkdir -p build; if scripts/python-env $(VENV); then python=ON; else python=OFF; fi; \
	cmake --preset release -DKVQUANT_PYTHON=$$python -DPython_EXECUTABLE=$(VENV)/bin/python \
	  > build/configure.log 2>&1 || { cat build/configure.log; exit 1; }
	@cmake --build build -j$(JOBS)

test: package
	@grep -q '^KVQUANT_PYTHON:BOOL=ON' build/CMakeCache.txt || \
	  echo "test: without the Python package, which has no environment"
	@ctest --preset release -j2

# Comparisons with transformers on the real model; skipped when the model can't be had.
test-models: build
	@if scripts/get-model smollm2; then \
	  KVQUANT_MODELS=$(MODELS) ctest --preset release -R '^RealModel' --no-tests=error; \
	else echo "test-models: skipped, there is no SmolLM2"; fi

# Without SmolLM2 the demo runs on the small model in assets/.
demo: build
	@scripts/get-model smollm2 > /dev/null || true  # its one line says why not
	@build/kvquant demo

# Speed of this machine's kernels and of a 103 M parameter model (docs/performance.md).
bench: build
	@build/kvquant bench kernels
	@mkdir -p build/models
	@test -d build/models/103m || build/kvquant make-model --layers 8 --hidden 1024 --heads 8 \
	  --kv-heads 8 --head-dim 128 --ffn 2816 --vocab 4096 --ctx 32768 -o build/models/103m
	@build/kvquant bench -m build/models/103m -p 512,4096 -n 32 -d 0,16384 --kv fp16

# Style and structure: formatting, clang-tidy, layers, sizes.
check: bootstrap-check
	@scripts/python-env $(VENV) || echo "check: ruff and mypy are left out, they have no environment"
	@mkdir -p build; cmake --preset release > build/configure.log 2>&1 || { cat build/configure.log; exit 1; }
	@tools/check

format: bootstrap-check
	@git ls-files '*.cc' '*.h' '*.cu' '*.cuh' | xargs -r clang-format-14 -i
	@scripts/python-env $(VENV) && $(VENV)/bin/ruff format --quiet

# python/kvquant/_core.pyi, after the bindings have changed.
stubs: package
	@PYTHONPATH=build/python $(VENV)/bin/python tools/make_stub.py > build/_core.pyi
	@cp build/_core.pyi python/kvquant/_core.pyi

asan tsan: bootstrap-check
	@cmake --preset $@
	@cmake --build build-$@ -j$(JOBS)
	@ctest --preset $@ -j2

# Every parser for FUZZ_SECONDS under libFuzzer, starting from the seeds in tests/fuzz/seeds.
fuzz: bootstrap-check
	@cmake --preset asan
	@names="$(basename $(notdir $(wildcard tests/fuzz/*_fuzz.cc)))"; \
	cmake --build build-asan -j$(JOBS) --target $$names; \
	for name in $$names; do tools/fuzz_one $$name $(FUZZ_SECONDS) || exit 1; done

bootstrap:
	@scripts/bootstrap

bootstrap-check:
	@scripts/bootstrap --check

clean:
	rm -rf build build-debug build-asan build-tsan build-cuda build-wheel
