#!/bin/sh
# install.sh NAME [TORCH_INDEX]: what requirements/NAME.txt pins, for an image. torch and torchvision
# come from TORCH_INDEX, where one is given, and the rest then without CUDA: its wheels aren't those
# whose hashes we know.
set -eu
file=requirements/$1.txt
index=${2:-}
if [ -n "$index" ]; then
    grep -oE '^(torch|torchvision)==[^ ]+' "$file" | xargs pip install --no-deps --index-url "$index"
    python3 requirements/without_torch.py "$file" > requirements/rest.txt
    file=requirements/rest.txt
fi
pip install --no-deps --require-hashes -r "$file"
