#!/bin/sh
# clipmill itself, and bytecode for all: an image's root is read-only when it runs.
set -eu
pip install --no-deps .
# Some packages carry files of other Pythons, which can't be compiled and are never imported.
python3 -m compileall -q --invalidation-mode unchecked-hash /opt/clipmill/lib || true
