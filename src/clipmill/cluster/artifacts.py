"""A pipeline's typed artifacts: records of what tasks made."""

import json
from pathlib import Path
from typing import Any

from clipmill.lineage import read_artifact


def recorded(uri: str, artifact: Any) -> str:
    """The URI, once kfp's typed ``artifact`` says what lies there: kind, digest, summary.

    The artifact is for lineage and the UI: metadata, and a JSON file at a URI of its own. It isn't
    what the next task is given: Kubeflow fetches the whole of an input before a task starts, and
    fails a task whose output lies in another bucket than the pipelines' own.
    """
    made = read_artifact(uri)
    summary = {str(name): str(value) for name, value in made.get("summary", {}).items()}
    record = {"store_uri": uri, "kind": made["kind"], "digest": made["digest"], **summary}
    artifact.metadata.update(record)
    Path(artifact.path).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return uri
