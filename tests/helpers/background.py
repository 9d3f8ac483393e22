"""Programs that run beside a test."""

import subprocess
from contextlib import contextmanager


@contextmanager
def running(*command, **options):
    """A started program, killed with the block."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
