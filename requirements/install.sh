#!/bin/sh
# install.sh NAME [TORCH]: what requirements/NAME.txt pins, for an image. TORCH says which torch:
#   empty      PyPI's, with CUDA
#   pypi-cpu   PyPI's, with CUDA taken out of it
#   an index   torch and torchvision from there, and the rest without CUDA: its wheels aren't those
#              whose hashes we know
set -eu
file=requirements/$1.txt
rest=requirements/rest.txt
case ${2:-} in
'') cp "$file" "$rest" ;;
pypi-cpu) python3 requirements/without.py cuda "$file" > "$rest" ;;
*)
    grep -oE '^(torch|torchvision)==[^ ]+' "$file" | xargs pip install --no-deps --index-url "$2"
    python3 requirements/without.py torch "$file" > "$rest"
    ;;
esac
pip install --no-deps --require-hashes -r "$rest"
if [ "${2:-}" = pypi-cpu ]; then
    sh requirements/without_cuda.sh "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
fi
# An image's root is read-only when it runs, so bytecode is made here. Some packages carry files of
# other Pythons, which can't be compiled and are never imported.
python3 -m compileall -q --invalidation-mode unchecked-hash /opt/clipmill/lib || true
