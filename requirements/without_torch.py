"""``python without_torch.py FILE``: a requirements file without torch and the CUDA that it brings.

For images whose torch comes from an index of its own; it needs nothing but Python.
"""

import re
import sys
from pathlib import Path

LEFT_OUT = re.compile(r"(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")


def without_torch(text: str) -> str:
    """The text without those packages, their hashes included."""
    kept = []
    dropping = False
    for line in text.splitlines(keepends=True):
        # A line that begins with a space goes on with the package above: it is a hash.
        if not line.startswith(" "):
            dropping = bool(LEFT_OUT.match(line))
        if not dropping:
            kept.append(line)
    return "".join(kept)


if __name__ == "__main__":
    sys.stdout.write(without_torch(Path(sys.argv[1]).read_text()))
