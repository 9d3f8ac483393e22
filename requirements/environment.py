"""Make or complete the virtual environment of ``make``: ``python environment.py EXTRA``.

It needs nothing but Python, and runs on versions that clipmill doesn't support, to say so before
anything is downloaded. An environment of another Python, with a broken interpreter, or left by an
installation that was interrupted is built again. A second run with nothing to do takes a moment.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

from without import without

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INDEX_SECONDS = 5
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
PIP = ("-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
UV = "uv==0.13.9"  # as pyproject.toml pins it for requirements/lock.py


def fail(message: str) -> None:
    """End with one line on standard error and exit code 2."""
    sys.stderr.write("error: " + message + "\n")
    sys.exit(2)


def say(message: str) -> None:
    """Write a line for the person who waits."""
    sys.stderr.write(message + "\n")


def supported(version: tuple) -> bool:
    """Whether pyproject.toml's requires-python includes a (major, minor) version."""
    low, high = _bounds()
    return low <= tuple(version) < high


def _bounds() -> tuple:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^requires-python = ">=(\d+)\.(\d+),<(\d+)\.(\d+)"$', text, re.MULTILINE)
    numbers = [int(number) for number in found.groups()]
    return tuple(numbers[:2]), tuple(numbers[2:])


def require_supported(executable: str, version: tuple) -> None:
    """End with an error that names the version and how to give another one."""
    if supported(version):
        return
    (major, low), (_, high) = _bounds()
    names = [f"python{major}.{minor}" for minor in range(high - 1, low - 1, -1)]
    there = [name for name in names if shutil.which(name)]
    hint = "make ... PYTHON=" + (there or names)[0]
    if not there:
        hint = "install one of them, then " + hint
    fail(
        "{} is Python {}; clipmill needs {}.{} to {}.{}: {}".format(
            executable, ".".join(map(str, version)), major, low, major, high - 1, hint
        )
    )


class Environment:
    """The virtual environment, and what was installed into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.stamp = folder / "clipmill.json"
        self.unfinished = folder / "unfinished"

    def version(self) -> tuple:
        """Return (major, minor) of its Python with pip; empty if it doesn't run."""
        code = "import sys, pip; print(*sys.version_info[:2])"
        try:
            run = subprocess.run(
                [str(self.python), "-c", code],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            return tuple(int(part) for part in run.stdout.split())
        except (OSError, subprocess.CalledProcessError, ValueError):
            return ()

    def fault(self, version: tuple, torch: str) -> str:
        """Say why it can't serve with this Python and torch; empty if it can."""
        found = self.version()
        if not found:
            return "its Python doesn't run"
        if found != version:
            return "it has Python {}.{}".format(*found)
        if self.unfinished.exists():
            return "its installation was interrupted"
        # pip takes either torch for the pinned version, so it wouldn't replace one by the other.
        return "it has the other torch" if self.installed().get("torch", torch) != torch else ""

    def create(self) -> None:
        """Make it with this Python, in place of whatever environment was there."""
        if self.folder.is_dir() and any(self.folder.iterdir()):
            if not (self.folder / "pyvenv.cfg").exists():
                fail(str(self.folder) + " isn't a virtual environment: give VENV another folder")
            shutil.rmtree(str(self.folder))
        # Of an environment's Python, the one that it was made from.
        base = getattr(sys, "_base_executable", None) or sys.executable
        subprocess.run([base, "-m", "venv", str(self.folder)], check=True)

    def installed(self) -> dict:
        """Return what was installed: a digest for each extra, and which torch."""
        try:
            return dict(json.loads(self.stamp.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def pip(self, *arguments: str) -> None:
        """Install; pip has said on standard error what went wrong if it ends with an error."""
        if self._run(self.python, *PIP, *arguments):
            fail("pip failed (see above); the same command starts the installation again")

    def install_pins(self, *arguments: str) -> None:
        """Install by uv, which takes a sixth of pip's time; by pip where uv can't do it.

        uv doesn't read pip's configuration files, which may name the only index that is reachable.
        """
        uv = self.python.with_name("uv")
        if not uv.exists():
            self._run(self.python, *PIP, UV)
        if uv.exists():
            command = (uv, "pip", "install", "--quiet", "--python", str(self.python))
            if not self._run(*command, *arguments):
                return
        say("uv can't install this (see above); pip does")
        self.pip(*arguments)

    def _run(self, *command: object) -> int:
        variables = dict(os.environ, MMCV_WITH_OPS="0")  # docs/dependencies.md
        if "PIP_INDEX_URL" in os.environ:
            variables.setdefault("UV_DEFAULT_INDEX", os.environ["PIP_INDEX_URL"])
        words = [str(word) for word in command]
        return subprocess.run(words, env=variables, cwd=str(ROOT), check=False).returncode


def digest(extra: str) -> str:
    """Return a digest of all that an installation of the extra depends on."""
    names = ("pyproject.toml", f"requirements/{extra}.txt")
    text = b"".join((ROOT / name).read_bytes() for name in names)
    return hashlib.sha256(text + str(ROOT).encode()).hexdigest()


def index_fault(index: str, version: tuple) -> str:
    """Say why an index can't give the pinned torch for a Python; empty if it can."""
    pins = (ROOT / "requirements" / "demo.txt").read_text(encoding="utf-8")
    torch = re.search(r"^torch==([^ \n]+)", pins, re.MULTILINE).group(1)
    try:
        url = index.rstrip("/") + "/torch/"
        with urllib.request.urlopen(url, timeout=INDEX_SECONDS) as answer:  # noqa: S310
            text = answer.read().decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        return "{} can't be reached ({})".format(index, getattr(error, "reason", error))
    wheel = "torch-{}[^<>]*-cp{}{}-".format(re.escape(torch), *version)
    if not re.search(wheel, text):
        return "{} has no torch {} for Python {}.{}".format(index, torch, *version)
    return ""


def choose_torch(wanted: str, index: str, version: tuple, installed: str) -> str:
    """Return ``cpu`` (wheels of the CPU index) or ``pypi``, and say which and why."""
    if platform.system() != "Linux":
        return "pypi"  # whose wheels are without CUDA there
    if installed and wanted in {"auto", "cpu" if installed == "cpu" else "cuda"}:
        return installed
    if wanted == "cuda":
        return "pypi"
    if wanted == "auto" and NVIDIA_DRIVER.exists():
        say("torch: PyPI's with CUDA, for this machine's NVIDIA driver (TORCH=cpu for without)")
        return "pypi"
    fault = index_fault(index, version)
    if fault and wanted == "cpu":
        fail(f"{fault}; TORCH=cuda takes PyPI's torch (4 GB more)")
    if fault:
        say(f"torch: PyPI's with CUDA, larger by 4 GB, since {fault}")
        return "pypi"
    say(f"torch: without CUDA, from {index} (TORCH=cuda for GPUs)")
    return "cpu"


def torch_pins(extra: str) -> list:
    """Return the extra's pins of torch and torchvision; none for an extra without them."""
    text = (ROOT / "requirements" / f"{extra}.txt").read_text(encoding="utf-8")
    return re.findall(r"^(?:torch|torchvision)==[^ \n]+", text, re.MULTILINE)


def install(environment: Environment, extra: str, torch: str, index: str) -> None:
    """Install the extra's pins and clipmill itself, if that hasn't been done."""
    done = environment.installed()
    if done.get(extra) == digest(extra):
        return
    file = ROOT / "requirements" / f"{extra}.txt"
    say(f"installing requirements/{file.name} into {environment.folder}")
    environment.unfinished.touch()
    rest = file
    pins = torch_pins(extra)
    if pins and torch == "cpu":
        environment.install_pins("--no-deps", "--index-url", index, *pins)
        rest = environment.folder / "rest.txt"
        rest.write_text(without("torch", file.read_text(encoding="utf-8")), encoding="utf-8")
    environment.install_pins("--no-deps", "-r", str(rest))
    environment.pip("--no-deps", "-e", ".")
    value = dict(done, **{extra: digest(extra)})
    if torch:
        value["torch"] = torch
    environment.stamp.write_text(json.dumps(value, indent=2), encoding="utf-8")
    environment.unfinished.unlink()


def main() -> None:
    """Check Python, make the environment if need be, and install into it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extra", help="demo, dev or docs")
    parser.add_argument("--venv", default=".venv", help="folder of the environment")
    parser.add_argument("--torch", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--index", default=CPU_INDEX, help="index of torch without CUDA")
    parser.add_argument(
        "--any-python", action="store_true", help="keep an environment of another supported Python"
    )
    options = parser.parse_args()
    environment = Environment(Path(options.venv).absolute())
    version = environment.version() if options.any_python else ()
    if not supported(version):
        version = tuple(sys.version_info[:2])
        require_supported(sys.executable, tuple(sys.version_info[:3]))
    installed = environment.installed().get("torch", "")
    torch = installed
    if torch_pins(options.extra):
        torch = choose_torch(options.torch, options.index, version, installed)
    fault = environment.fault(version, torch)
    if fault:
        if environment.folder.exists():
            say(f"building {options.venv} again: {fault}")
        require_supported(sys.executable, tuple(sys.version_info[:3]))
        environment.create()
    install(environment, options.extra, torch, options.index)


if __name__ == "__main__":
    main()
