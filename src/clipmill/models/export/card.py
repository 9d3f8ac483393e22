"""The README.md of an exported model: what it is, what it was made from, how to load it."""

import json
from collections.abc import Iterator

from clipmill.models.checkpoint import ModelCard
from clipmill.models.export.files import Exported
from clipmill.storage.lineage import Node, lineage, render


def model_card(card: ModelCard, made: Exported) -> str:
    """Markdown with the YAML header that the Hugging Face hub reads.

    The license is the sources' own where their ``summary`` names one; none is assumed.
    """
    tree = lineage(card.uri)
    nodes = list(_nodes(tree))
    licenses = sorted({n.detail["license"] for n in nodes if "license" in n.detail})
    header = {
        "library_name": made.library,
        "tags": ["clipmill", str(card.architecture.get("task", "clip"))],
        **({"license": licenses[0]} if len(licenses) == 1 else {}),
    }
    sections = {
        "": "\n".join(
            f"- {name}: {text}" for name, text in {**card.summary, "digest": card.digest}.items()
        ),
        "How to load it": f"```python\n{made.usage}\n```\n" + "\n".join(made.notes),
        "Preprocessing": "\n".join(
            f"- {name}: {text}" for name, text in made.preprocessing.items()
        ),
        "Training metrics": "\n".join(
            f"- {name}: {value:.6g}" for name, value in sorted(card.metrics.items())
        )
        or "None were recorded.",
        "Made from": f"```\n{render(tree)}\n```",
        "License": ", ".join(licenses)
        or "The sources name none: check that of the data and weights it was made from.",
        "Recipe": f"```json\n{json.dumps(card.recipe, indent=2)}\n```",
        "Architecture": f"```json\n{json.dumps(card.architecture, indent=2)}\n```",
    }
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    body = "\n\n".join(
        (f"## {title}\n\n" if title else "") + text.rstrip() for title, text in sections.items()
    )
    return f"---\n{yaml}\n---\n\n# {_title(card)}\n\n{body}\n"


def _title(card: ModelCard) -> str:
    if card.kind == "task":
        return f"{str(card.architecture['task']).capitalize()} model made by clipmill"
    return "CLIP encoder made by clipmill"


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for parent in node.parents:
        yield from _nodes(parent)
