"""Files that every export writes: tensors, JSON, the origin, and the README with a model card."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.errors import ConfigError
from clipmill.lineage import Node, lineage, render
from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.models.config import VisionConfig
from clipmill.storage import atomic_write

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """Result of an export."""

    name: str
    """Name or path that the other library loads."""
    usage: str
    """Python code that loads it."""
    library: str
    """Name of the library, as the Hugging Face hub spells it."""
    preprocessing: Mapping[str, Any]
    """Preprocessing of its images, by aspect."""
    notes: tuple[str, ...] = ()
    """Limitations of the format."""


def write_model(
    folder: Path,
    config_name: str,
    config: Mapping[str, Any],
    tensors_name: str,
    tensors: Mapping[str, "Tensor"],
) -> None:
    """Write tensors, then the config, without which no library takes the folder for a model."""
    from safetensors.torch import save

    # safetensors' own save_file makes a file that only its owner can read.
    data = save({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
    with atomic_write(folder / tensors_name) as path:
        path.write_bytes(data)
    write_json_file(folder / config_name, config)


def write_json_file(path: Path, value: Mapping[str, Any]) -> None:
    """Write an indented JSON object, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def origin(metadata: CheckpointMetadata) -> dict[str, str]:
    """Return URI and digest of the exported checkpoint, for the lineage."""
    return {"uri": metadata.uri, "digest": metadata.digest}


def preprocessing(vision: VisionConfig) -> dict[str, Any]:
    """Return an image tower's preprocessing, for people and for a model's metadata."""
    return {
        "size": vision.image_size,
        "mean": list(vision.mean),
        "std": list(vision.std),
        "interpolation": vision.interpolation,
        "crop": "center square",
    }


def missing_extra_error(module: str, extra: str) -> ConfigError:
    """Return the error for a format whose library isn't installed."""
    return ConfigError(
        f"the Python package {module} isn't installed",
        expected=f"clipmill with the extra {extra!r}",
        action=f"pip install 'clipmill[{extra}]'",
    )


def render_model_card(metadata: CheckpointMetadata, result: ExportResult) -> str:
    """Markdown with the YAML header that the Hugging Face hub reads.

    The license is the sources' own where their ``summary`` names one; none is assumed.
    """
    tree = lineage(metadata.uri)
    nodes = list(_nodes(tree))
    licenses = sorted({n.detail["license"] for n in nodes if "license" in n.detail})
    header = {
        "library_name": result.library,
        "tags": ["clipmill", str(metadata.architecture.get("task", "clip"))],
        **({"license": licenses[0]} if len(licenses) == 1 else {}),
    }
    sections = {
        "": "\n".join(
            f"- {name}: {text}"
            for name, text in {**metadata.summary, "digest": metadata.digest}.items()
        ),
        "How to load it": f"```python\n{result.usage}\n```\n" + "\n".join(result.notes),
        "Preprocessing": "\n".join(
            f"- {name}: {text}" for name, text in result.preprocessing.items()
        ),
        "Training metrics": "\n".join(
            f"- {name}: {value:.6g}" for name, value in sorted(metadata.metrics.items())
        )
        or "None were recorded.",
        "Made from": f"```\n{render(tree)}\n```",
        "License": ", ".join(licenses)
        or "The sources name none: check that of the data and weights it was made from.",
        "Recipe": f"```json\n{json.dumps(metadata.recipe, indent=2)}\n```",
        "Architecture": f"```json\n{json.dumps(metadata.architecture, indent=2)}\n```",
    }
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    body = "\n\n".join(
        (f"## {title}\n\n" if title else "") + text.rstrip() for title, text in sections.items()
    )
    return f"---\n{yaml}\n---\n\n# {_title(metadata)}\n\n{body}\n"


def _title(metadata: CheckpointMetadata) -> str:
    if metadata.kind == "task":
        return f"{str(metadata.architecture['task']).capitalize()} model made by clipmill"
    return "CLIP encoder made by clipmill"


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for parent in node.parents:
        yield from _nodes(parent)
