"""Whether an artifact was made of procedural scenes, as its lineage tells."""

from clipmill.errors import ClipmillError
from clipmill.storage import Node, read_artifact


def made_of_scenes(node: Node) -> bool:
    """Whether a node or one of its ancestors is scenes, or one of the sets in their folder."""
    return _is_scenes(node) or any(made_of_scenes(parent) for parent in node.parents)


def _is_scenes(node: Node) -> bool:
    if node.kind not in {"file", "folder"}:
        return node.kind == "source" and "scenes" in node.detail
    try:
        around = read_artifact(node.uri.rstrip("/").rpartition("/")[0])
    except ClipmillError:
        return False
    return around["kind"] == "source" and "scenes" in around.get("summary", {})
