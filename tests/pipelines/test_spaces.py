"""Paths that a shell would take apart, or that kfp would rewrite."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from kfp import dsl
from clipmill.pipelines.local import run_local

@dsl.component(install_kfp_package=False)
def work(path: str):
    import sys
    from pathlib import Path
    Path(path).write_text(sys.executable)

@dsl.pipeline(name="small")
def small(path: str):
    work(path=path)

folder = Path(sys.argv[1])
run_local(small, {"path": str(folder / "found.txt")}, folder)
"""


def test_interpreter_and_store_may_have_spaces_and_be_called_python3(tmp_path):
    venv = tmp_path / "my venv"
    venv.symlink_to(sys.prefix)
    executable = str(venv / "bin" / "python")
    folder = tmp_path / "python3 work's"
    folder.mkdir()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [executable, str(program), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path((folder / "found.txt").read_text()) == Path(executable)
