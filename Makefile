# make demo: the whole way, on this machine. make test: the quick suite. make check: what CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# OpenMMLab's compiled operators aren't needed: torchvision's stand in (docs/dependencies.md).
export MMCV_WITH_OPS := 0
# Workers run side by side: one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: demo test check format lock clean

demo: $(VENV)/demo.installed
	$(BIN)/clipmill demo

test: $(VENV)/dev.installed
	$(PYTEST)

check: $(VENV)/dev.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python requirements/lock.py --check
	$(BIN)/python -m clipmill.pipelines.compile --check
	$(PYTEST)

format: $(VENV)/dev.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: $(VENV)/dev.installed
	$(BIN)/python requirements/lock.py

# A virtual environment of what is pinned, which is everything, and then clipmill itself.
$(VENV)/%.installed: requirements/%.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps -r $<
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) .clipmill
