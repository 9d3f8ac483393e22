# make demo    run the full pipeline on this machine
# make smoke   run one test file of each package: a minute
# make test    run the quick test suite
# make check   run what CI runs
# make kustomize REGISTRY=R NAMESPACE=N OUT=DIR    write a kustomize base and overlays
# make bench   measure all parts against pinned peers and the limit; PART=loader: one of them
# make docs    build the documentation site into site/, in .venv-docs
#
#   PYTHON   Python 3.11 to 3.13 (python3, or what .venv was made from)
#   VENV     folder of the virtual environment
#   TORCH    auto: without CUDA where there is no NVIDIA driver and PyTorch's index of such wheels
#            can be reached, else PyPI's. cpu or cuda: that one, or an error.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= auto
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Quoted: the checkout's path, and so VENV's, may have spaces.
BIN = "$(VENV)"/bin
# OpenMMLab's compiled operators aren't needed: torchvision's stand in (docs/dependencies.md).
export MMCV_WITH_OPS := 0
# Bytecode is kept: without it each start of torch and OpenMMLab compiles for eight seconds.
unexport PYTHONDONTWRITEBYTECODE
# Workers run side by side: one thread each, and whole files, so that no fixture is made twice.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# A Python that nobody named gives way to the environment's own.
INSTALL = "$(PYTHON)" requirements/environment.py --venv "$(VENV)" --torch $(TORCH) \
    --index $(TORCH_INDEX) $(if $(filter file,$(origin PYTHON)),--any-python)

# A file of each package.
SMOKE := $(addprefix tests/, test_config.py test_errors.py test_tree.py recipes/test_registry.py \
    storage/test_store.py data/test_shards_read.py data/test_view.py data/test_dataloader.py \
    models/test_tokenizer.py models/test_encoders.py engine/test_optim.py engine/test_trainer.py \
    pretrain/test_contrastive.py tasks/test_segmentation_objective.py tasks/test_evaluation.py \
    serve/test_bodies.py serve/test_answers.py report/test_summary.py cluster/test_argo.py)

.PHONY: demo test smoke check kustomize bench docs format lock clean \
    $(addprefix installed-, demo dev docs peers)

demo: installed-demo
	$(BIN)/python -m clipmill demo

test: installed-dev
	$(PYTEST)

smoke: installed-dev
	$(PYTEST) $(SMOKE)

check: installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python requirements/lock.py --check
	$(BIN)/python -m clipmill.pipelines.compile --check
	$(PYTEST)

kustomize: installed-dev
	$(BIN)/python -m clipmill.pipelines.kustomize --registry "$(REGISTRY)" \
	    --namespace "$(or $(NAMESPACE),clipmill)" --out "$(or $(OUT),kustomize)"

bench: VENV = .venv-peers
bench: installed-peers
	@$(INSTALL) --venv .venv-img2dataset img2dataset
	$(BIN)/python benchmarks/bench.py $(PART)

docs: VENV = .venv-docs
docs: installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: installed-dev
	$(BIN)/python requirements/lock.py

installed-demo installed-dev installed-docs installed-peers: installed-%:
	@command -v "$(PYTHON)" > /dev/null || { \
	    echo "error: there is no $(PYTHON): install Python 3.11 to 3.13, or name one: make ... PYTHON=python3.12" >&2; exit 2; }
	@$(INSTALL) $*

clean:
	rm -rf "$(VENV)" .venv-docs .venv-peers .venv-img2dataset site .clipmill
