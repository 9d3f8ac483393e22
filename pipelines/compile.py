"""``python -m clipmill.pipelines.compile``: write the compiled pipelines into ``manifests/``.

``--check`` compiles elsewhere and fails where a file differs from the one in the repository.
"""

import sys
import tempfile
from pathlib import Path

MANIFESTS = Path(__file__).resolve().parent.parent / "manifests"


def compile_all(folder: Path) -> list[Path]:
    """Compile each pipeline to a YAML file of its name; the files."""
    from clipmill.pipelines.first_light import first_light
    from kfp import compiler

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for pipeline in (first_light,):
        files.append(folder / f"{pipeline.name}.yaml")
        compiler.Compiler().compile(pipeline, str(files[-1]))
    return files


def main() -> int:
    """Write the manifests, or check that they are current."""
    if "--check" not in sys.argv:
        compile_all(MANIFESTS)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        stale = [
            file.name
            for file in compile_all(Path(scratch))
            if not (MANIFESTS / file.name).exists()
            or (MANIFESTS / file.name).read_text() != file.read_text()
        ]
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run python -m clipmill.pipelines.compile\n")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
