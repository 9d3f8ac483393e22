"""``make``'s virtual environment: which Python, which torch, and when it is built again."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON_3_10 = """
import runpy, sys
sys.version_info = (3, 10, 4)
sys.argv = sys.argv[1:]
sys.path.insert(0, "requirements")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TORCH = re.search(r"^torch==(\S+)", (ROOT / "requirements/demo.txt").read_text(), re.MULTILINE)[1]
VERSION = sys.version_info[:2]


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "requirements"))
    path = ROOT / "requirements" / "environment.py"
    spec = importlib.util.spec_from_file_location("environment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "NVIDIA_DRIVER", Path("/no/driver"))
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    return module


@pytest.fixture
def index():
    """A package index of torch without CUDA for this Python; its pages may be changed."""
    tag = f"cp{VERSION[0]}{VERSION[1]}"
    wheel = f"torch-{TORCH}%2Bcpu-{tag}-{tag}-manylinux_2_28_x86_64.whl"
    pages = {"/cpu/torch/": f'<a href="/whl/{wheel}">{wheel}</a>'}

    class Index(BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path)
            self.send_response(200 if page else 404)
            self.end_headers()
            self.wfile.write((page or "").encode())

        def log_message(self, *args):
            """Nothing: tests print what matters."""

    server = HTTPServer(("127.0.0.1", 0), Index)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/cpu", pages
    server.shutdown()
    thread.join()
    server.server_close()


def test_torch_comes_without_cuda_where_its_index_answers(environment, index, capsys):
    url, _ = index
    assert environment.choose_torch("auto", url, VERSION, "") == "cpu"
    assert f"without CUDA, from {url}" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "torch-1.0.0%2Bcpu-cp311-cp311-linux_x86_64.whl"])
def test_pypi_stands_in_for_an_index_without_the_version_and_says_so(
    content, environment, index, capsys
):
    url, pages = index
    pages["/cpu/torch/"] = content
    assert environment.choose_torch("auto", url, VERSION, "") == "pypi"
    assert "larger by" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        environment.choose_torch("cpu", url, VERSION, "")
    assert "TORCH=cuda" in capsys.readouterr().err


def test_an_index_that_is_unreachable_is_named(environment, capsys):
    url = "http://127.0.0.1:9/cpu"
    assert environment.choose_torch("auto", url, VERSION, "") == "pypi"
    assert f"{url} can't be reached" in capsys.readouterr().err


def test_a_driver_asks_for_cuda_and_so_may_the_user(environment, index, tmp_path, monkeypatch):
    url, _ = index
    assert environment.choose_torch("cuda", url, VERSION, "") == "pypi"
    monkeypatch.setattr(environment, "NVIDIA_DRIVER", tmp_path)
    assert environment.choose_torch("auto", url, VERSION, "") == "pypi"
    assert environment.choose_torch("cpu", url, VERSION, "") == "cpu"
    assert environment.choose_torch("auto", url, VERSION, "cpu") == "cpu"
    monkeypatch.setattr(environment.platform, "system", lambda: "Darwin")
    assert environment.choose_torch("auto", url, VERSION, "") == "pypi"


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 14, 0)])
def test_another_python_is_refused_in_one_line(version, environment, capsys):
    with pytest.raises(SystemExit) as ended:
        environment.require_supported("/usr/bin/python3", version)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ".".join(map(str, version)) in said
    assert re.search(r"3\.11 to 3\.13: .*PYTHON=python3\.1[123]\n", said)


def interpreter(folder, version):
    """A virtual environment whose Python only tells its version; pyvenv.cfg included."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    (folder / "pyvenv.cfg").touch()
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o755)


def run(environment, monkeypatch, folder, *arguments):
    """Run the script's main; returns what pip was given."""
    given = []
    monkeypatch.setattr(environment.Environment, "pip", lambda _, *words: given.append(words))
    monkeypatch.setattr(
        environment.Environment, "install_pins", lambda _, *words: given.append(words)
    )
    command = ["environment.py", "demo", "--venv", str(folder), "--torch", "cuda", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    environment.main()
    return given


@pytest.mark.parametrize(
    ("version", "is_unfinished", "said"),
    [
        ("3 10", False, "it has Python 3.10"),
        ("not a version", False, "its Python doesn't run"),
        (f"{VERSION[0]} {VERSION[1]}", True, "its installation was interrupted"),
    ],
)
def test_what_is_wrong_with_an_environment_is_said(
    version, is_unfinished, said, environment, tmp_path
):
    interpreter(tmp_path, version)
    found = environment.Environment(tmp_path)
    if is_unfinished:
        found.unfinished.touch()
    assert said in found.fault(VERSION, "pypi")


def test_a_wrong_environment_is_built_again_once(environment, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "a venv"
    interpreter(folder, "3 10")
    (folder / "old").touch()
    given = run(environment, monkeypatch, folder)
    assert "again: it has Python 3.10" in capsys.readouterr().err
    assert not (folder / "old").exists()
    assert not (folder / "unfinished").exists()
    assert environment.Environment(folder).version() == VERSION
    assert [words[-1] for words in given] == [str(ROOT / "requirements/demo.txt"), "."]
    assert run(environment, monkeypatch, folder) == []


def test_the_other_torch_takes_a_new_environment(environment, tmp_path):
    interpreter(tmp_path, f"{VERSION[0]} {VERSION[1]}")
    found = environment.Environment(tmp_path)
    found.stamp.write_text('{"torch": "cpu"}')
    assert not found.fault(VERSION, "cpu")
    assert "other torch" in found.fault(VERSION, "pypi")


def test_an_environment_of_another_supported_python_stays_unless_one_is_named(
    environment, monkeypatch, tmp_path
):
    other = next(v for v in (11, 12, 13) if v != VERSION[1])
    interpreter(tmp_path / "venv", f"3 {other}")
    run(environment, monkeypatch, tmp_path / "venv", "--any-python")
    assert environment.Environment(tmp_path / "venv").version() == (3, other)


def test_a_folder_that_is_no_environment_is_left_alone(environment, monkeypatch, tmp_path, capsys):
    (tmp_path / "precious").touch()
    with pytest.raises(SystemExit):
        run(environment, monkeypatch, tmp_path)
    assert "isn't a virtual environment" in capsys.readouterr().err
    assert (tmp_path / "precious").exists()


def test_the_cpu_index_gives_torch_alone(environment, index, monkeypatch, tmp_path):
    url, _ = index
    interpreter(tmp_path / "venv", f"{VERSION[0]} {VERSION[1]}")
    given = run(environment, monkeypatch, tmp_path / "venv", "--torch", "cpu", "--index", url)
    assert given[0][:3] == ("--no-deps", "--index-url", url)
    assert {pin.split("==")[0] for pin in given[0][3:]} == {"torch", "torchvision"}
    rest = Path(given[1][-1]).read_text()
    assert "timm==" in rest
    assert not re.search(r"^(torch|torchvision|triton|nvidia-\S+|cuda-\S+)==", rest, re.MULTILINE)
    assert json.loads((tmp_path / "venv" / "clipmill.json").read_text())["torch"] == "cpu"


def test_make_refuses_a_python_before_it_writes_anything(tmp_path):
    old = tmp_path / "old python"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{PYTHON_3_10}' \"$@\"\n")
    old.chmod(0o755)
    folder = tmp_path / "a venv"
    command = ["make", "-C", str(ROOT), "installed-demo", f"PYTHON={old}", f"VENV={folder}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert found.returncode == 2
    assert "is Python 3.10.4; clipmill needs 3.11 to 3.13" in found.stderr
    assert not folder.exists()


def test_an_extra_without_torch_asks_for_none(environment, monkeypatch, tmp_path):
    """``make docs`` neither looks for PyTorch's index nor says which torch it took."""
    assert environment.torch_pins("docs") == []
    assert len(environment.torch_pins("demo")) == 2
    ran = []
    monkeypatch.setattr(environment.Environment, "pip", lambda self, *words: ran.append(words))
    monkeypatch.setattr(
        environment.Environment, "install_pins", lambda self, *words: ran.append(words)
    )
    monkeypatch.setattr(environment, "choose_torch", lambda *_: pytest.fail("asked for torch"))
    monkeypatch.setattr(environment.Environment, "version", lambda self: VERSION)
    monkeypatch.setattr(sys, "argv", ["environment.py", "docs", "--venv", str(tmp_path)])
    environment.main()
    assert [word for words in ran for word in words if word.startswith("--index-url")] == []
    stamp = json.loads((tmp_path / "clipmill.json").read_text())
    assert set(stamp) == {"docs"}
