#!/bin/sh
# without_cuda.sh SITE_PACKAGES: make PyPI's torch work without NVIDIA's libraries (3 GB), where no
# index of CPU wheels can be reached. Its own libraries name them, so the loader must find them: one
# small library, linked by all their names, has each function that torch asks for. On a CPU none
# is called; what calls one all the same sees an error, since each returns something other than
# zero. NVIDIA's runtime stays, and says that there is no driver.
set -eu
[ "$(uname -m)" = x86_64 ] || { echo "pypi-cpu is for x86_64: give TORCH_INDEX an index of CPU wheels" >&2; exit 1; }
command -v as > /dev/null || { apt-get update -q; apt-get install -y -q --no-install-recommends binutils; }
torch=$1/torch
lib=$torch/lib
work=$(mktemp -d)

# These are opened where there is a GPU, and by nothing else.
rm "$lib/libtorch_cuda_linalg.so" "$lib/libcaffe2_nvrtc.so"

nm -D --defined-only "$1"/nvidia/*/lib/libcudart.so.* | sed 's/.* //; s/@.*//' > "$work/there"
# Lines of a function's name and, where it has one, its version.
nm -D --undefined-only "$lib"/*.so | sed -nE 's/.* U ((cu|nv|nccl)[A-Za-z0-9_]+)(@(.*))?$/\1 \4/p' \
    | sort -u | grep -v -w -F -f "$work/there" > "$work/wanted"
{
    printf '.text\nabsent: lea room(%%rip), %%rax\n ret\n.bss\nroom: .zero 4096\n'
    sed 's/ .*//; s/.*/.globl &\n.set &, absent/' "$work/wanted"
} | as -o "$work/absent.o" -
awk 'NF == 2 { of[$2] = of[$2] $1 ";" } END { for (v in of) print v " {" of[v] "};" }' \
    "$work/wanted" > "$work/versions"
ld -shared --version-script="$work/versions" -o "$lib/libabsent.so" "$work/absent.o"
readelf -d "$lib"/*.so | sed -nE 's/.*NEEDED.*\[(lib(cu|nv|nccl).*)\]/\1/p' | sort -u \
    | while read -r name; do
        [ -e "$(echo "$1"/nvidia/*/lib/"$name")" ] || ln -s libabsent.so "$lib/$name"
    done

# What only compilers and debuggers read. Folders named tests stay: numpy.testing imports one, and
# scipy.optimize imports numpy.testing.
for file in "$lib"/libtorch*.so; do strip --strip-unneeded "$file"; done
rm -r "$torch/include" "$torch"/bin/protoc*
rm -r "$work"

# ld.so resolves all that an import needs, so this fails here, not in an endpoint.
python - << 'CHECK'
import torch, torchvision
assert not torch.cuda.is_available()
picture = torch.rand(1, 3, 8, 8, requires_grad=True)
torch.nn.functional.conv2d(picture, torch.rand(2, 3, 3, 3)).sum().backward()
torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)
CHECK
