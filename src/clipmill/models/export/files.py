"""What every export writes: tensors, JSON and a note of where it came from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.errors import ConfigError
from clipmill.models.checkpoint import ModelCard
from clipmill.models.towers import VisionConfig
from clipmill.storage import replacing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written."""

    name: str
    """Name or path that the other library loads."""
    usage: str
    """Python code that loads it."""
    library: str
    """Name of the library, as the Hugging Face hub spells it."""
    preprocessing: Mapping[str, Any]
    """How images are prepared for it, by aspect."""
    notes: tuple[str, ...] = ()
    """What the format can't hold."""


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
    with replacing(folder / tensors_name) as path:
        path.write_bytes(data)
    write_json_file(folder / config_name, config)


def write_json_file(path: Path, value: Mapping[str, Any]) -> None:
    """Write an indented JSON object, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def origin(card: ModelCard) -> dict[str, str]:
    """Where an exported model came from, so that its lineage can be followed back."""
    return {"uri": card.uri, "digest": card.digest}


def preprocessing(vision: VisionConfig) -> dict[str, Any]:
    """How an image tower's images are prepared, for people and for a model's metadata."""
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
