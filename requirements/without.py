"""``python without.py torch FILE`` or ``without.py cuda FILE``: a requirements file without those.

For images whose torch comes from an index of its own, and for those without CUDA; it needs nothing
but Python.
"""

import re
import sys
from pathlib import Path

LEFT_OUT = {
    # CUDA comes with PyPI's torch.
    "torch": re.compile(r"(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)=="),
    # The runtime is small, and says well that there is no GPU.
    "cuda": re.compile(r"(triton|nvidia-(?!cuda-runtime=)[a-z0-9-]+|cuda-[a-z0-9-]+)=="),
}


def without(what: str, text: str) -> str:
    """The text without the packages of ``what``, their hashes included."""
    kept = []
    dropping = False
    for line in text.splitlines(keepends=True):
        # A line that begins with a space goes on with the package above: it is a hash.
        if not line.startswith(" "):
            dropping = bool(LEFT_OUT[what].match(line))
        if not dropping:
            kept.append(line)
    return "".join(kept)


if __name__ == "__main__":
    sys.stdout.write(without(sys.argv[1], Path(sys.argv[2]).read_text()))
