#!/bin/sh
# clipmill itself, built by the setuptools that is pinned, without a network; and bytecode for all:
# an image's root is read-only when it runs.
set -eu
pip install --no-deps --no-build-isolation --no-index .
# Some packages carry files of other Pythons, which can't be compiled and are never imported.
python3 -m compileall -q --invalidation-mode unchecked-hash /opt/clipmill/lib || true
