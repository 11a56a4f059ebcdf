# make demo: install and run the main job. make test: install, lint, docs, test.
# make docs: the pages of docs/ as a site. make bench: CPU benchmarks (SHORT=1: some of them).
# make fidelity: every method against the full run; stopped and started again, it goes on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The oldest torch that the compiled library must run on, in an environment of its own.
OLD_TORCH := 2.11.0
OLD_VENV := .venv-torch-$(OLD_TORCH)
CSRC := $(wildcard csrc/*/*.* csrc/*/*/*.*)

# Spinning OpenMP threads make a shared machine up to eight times slower (measured on the demo); a
# benchmark keeps the default, the demo and the tests see to it themselves.
fidelity: export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test lint docs old-torch bench fidelity clean

demo: $(VENV)/installed
	$(BIN)/python -m adaptive_kernels demo --out demo

test: $(VENV)/installed lint docs
	$(BIN)/python -m pytest -n auto
	@$(MAKE) --no-print-directory old-torch

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC)

# A link that leads nowhere fails.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "docs: site/index.html"

# The library built against the newest torch, run by the oldest: one build serves both. Then what is
# compiled against the oldest itself: the CUDA sources by its headers, Triton's by its Triton. Last the
# executors, which see much of torch.
old-torch: $(VENV)/installed $(OLD_VENV)/installed
	PYTHONPATH=. $(OLD_VENV)/bin/python -m pytest \
		tests/ops/test_step.py tests/ops/test_noise.py tests/ops/test_convert.py \
		tests/ops/test_old_torch.py tests/ops/test_compile.py
	PYTHONPATH=. $(OLD_VENV)/bin/python -m pytest tests/ops/test_contract.py \
		-k "C++ or ((emulated or interpreted) and (batch or noise or tie))"
	PYTHONPATH=. $(OLD_VENV)/bin/python -m pytest tests/ops/cuda/test_kernels.py \
		tests/ops/triton -k "condition or one_launch or compiles"
	PYTHONPATH=. $(OLD_VENV)/bin/python -m pytest tests/executors/test_executors.py \
		tests/executors/test_guard.py

# SHORT=1: one size in float32, within a minute.
bench: $(VENV)/installed
	@mkdir -p bench
	$(BIN)/python -m pytest benchmarks/ops/cpu/bench_step.py --benchmark-only \
		--benchmark-json=bench/step.json $(if $(SHORT),-k 1x4x64x64-float32)
	$(BIN)/python benchmarks/compare.py bench/step.json benchmarks/results/step-cpu.json \
		$(if $(SHORT),--part)

fidelity: $(VENV)/installed
	$(BIN)/python -m benchmarks.fidelity --out bench/fidelity

$(VENV)/installed: pyproject.toml setup.py $(CSRC)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed')"
	@echo "installing torch and the build tools into $(VENV) (some GB the first time)"
	$(call make_venv,$(VENV))
	$(BIN)/python -m pip install -q "setuptools>=77" "torch>=2.11" numpy ninja "pybind11>=2.13"
	-@$(BIN)/python setup.py -q what 2> /dev/null
	$(BIN)/python -m pip install -qq --no-build-isolation -e ".[test]"
	@# A plain path entry too: a script beside the checkout would else find the folder of that name.
	@$(BIN)/python -c "import pathlib, site; pathlib.Path(site.getsitepackages()[0], \
		'adaptive_kernels_checkout.pth').write_text('$(CURDIR)\n')"
	@# A CUDA library that was begun and did not come is told.
	@$(BIN)/python -m adaptive_kernels info | sed '/what serves/,$$d'
	@touch $@

$(OLD_VENV)/installed: Makefile
	@echo "installing torch $(OLD_TORCH) into $(OLD_VENV) (some GB the first time)"
	$(call make_venv,$(OLD_VENV))
	$(OLD_VENV)/bin/python -m pip install -q torch==$(OLD_TORCH) numpy tqdm safetensors pytest hypothesis \
		pytest-benchmark
	@touch $@

# Debian's python3 has no ensurepip unless python3-venv is installed; pip alone is enough here.
define make_venv
	@test -x $(1)/bin/pip || $(PYTHON) -m venv $(1) > /dev/null 2>&1 || { \
		$(PYTHON) -m pip install -q --target $(1)-bootstrap virtualenv && \
		PYTHONPATH=$(1)-bootstrap $(PYTHON) -m virtualenv -q --clear $(1); }
	@$(1)/bin/python -m pip install -q --upgrade pip
endef

clean:
	rm -rf $(VENV) $(OLD_VENV) $(VENV)-bootstrap $(OLD_VENV)-bootstrap build demo bench site \
		adaptive_kernels/*.so adaptive_kernels/*/*.so *.egg-info
