"""From nothing to an answer: the command line, the library, and an endpoint."""

import subprocess
import sys
from functools import partial
from pathlib import Path

from harness.case import Case, Contender, Sizes
from harness.session import Session

from parts.models import save_segmenter

MODEL = "model"


def program(arguments: tuple[str, ...], folder: Path, sizes: Sizes, session: Session) -> None:
    """Run Python with arguments, from its start to its end."""
    del folder, sizes
    command = [sys.executable, *arguments]

    def lap() -> float:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return 1

    lap()  # bytecode, and the files in the system's cache
    session.answer()
    session.run(lap)


def save_models(folder: Path, sizes: Sizes) -> None:
    """Write a ViT-B/16 segmenter, or a tiny one."""
    save_segmenter(folder / MODEL, is_base=bool(sizes["base"]))


def serve(folder: Path, sizes: Sizes, session: Session) -> None:
    """Start an endpoint until readiness answers; its end isn't timed."""
    from clipmill.serve.launch import ServerProcess

    def server() -> ServerProcess:
        return ServerProcess({MODEL: str(folder / MODEL)}, log_path=folder / "server.log")

    for _ in range(sizes["warm_starts"]):  # bytecode, and the files in the system's cache
        with server():
            pass
    session.answer()
    while True:
        session.start()
        with server():
            session.stop(1)


CASES = (
    Case(
        name="clipmill --help",
        unit="starts",
        contenders=(
            Contender(name="clipmill", run=partial(program, ("-m", "clipmill", "--help"))),
        ),
        sizes={},
        tiny={},
        rounds=10,
        at_most_seconds=0.4,
    ),
    Case(
        name="import clipmill",
        unit="starts",
        contenders=(Contender(name="clipmill", run=partial(program, ("-c", "import clipmill"))),),
        sizes={},
        tiny={},
        rounds=10,
        at_most_seconds=0.2,
    ),
    Case(
        name="serve to ready, ViT-B/16 segmentation",
        unit="starts",
        prepare=save_models,
        contenders=(Contender(name="clipmill", run=serve),),
        sizes={"base": 1, "warm_starts": 1},
        tiny={"base": 0, "warm_starts": 0},
        at_most_seconds=6,
    ),
)
