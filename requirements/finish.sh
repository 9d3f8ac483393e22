#!/bin/sh
# clipmill itself, built by the setuptools that is pinned, without a network; into /own, so that its
# layer has nothing else.
set -eu
pip install --no-deps --no-build-isolation --no-index --prefix=/own .
python3 -m compileall -q --invalidation-mode unchecked-hash /own
