"""Tensors by name from files that other libraries wrote; nothing in a file is executed."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives, and no others, hold beside their weights."""


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read a ``.safetensors`` file, a PyTorch state dict or a TorchScript archive, as float32.

    A state dict may lie under ``state_dict`` or ``model``, and its names may begin with
    ``module.``.

    Raises:
        ArtifactError: the file is cut, or holds more than tensors.
    """
    tensors = {k.removeprefix("module."): v for k, v in _read(path).items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _read(path: Path) -> "Mapping[str, Tensor]":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            # TorchScript's code runs only when a module is called, and isn't Python's.
            script = torch.jit.load(path, map_location="cpu")
            return {str(k): v for k, v in script.state_dict().items()}
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"{path} can't be read as weights: {reason}",
            expected="a whole file that holds tensors and nothing that must be executed",
            action="download it again, or save it as safetensors where it comes from",
        ) from error
    for key in ("state_dict", "model"):  # training checkpoints of open_clip and timm
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ArtifactError(
            f"{path} holds a {type(found).__name__} that isn't weights by name",
            expected="tensors by name, alone or under state_dict",
            action="save the model's state_dict",
        )
    return found


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, as OpenAI's are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def check_fit(
    source: str,
    tensors: "Mapping[str, Tensor]",
    own: "Mapping[str, Tensor]",
    *,
    optional: tuple[str, ...] = (),
) -> None:
    """Refuse tensors that aren't those of a model (ArtifactError).

    ``own`` is the model's state dict; what begins with ``optional`` may be missing from tensors.
    """
    strange = [k for k in tensors if k not in own]
    missing = [k for k in own if k not in tensors and not k.startswith(optional)]
    shapes = [
        f"{k} {tuple(v.shape)} against {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and own[k].shape != v.shape
    ]
    if strange or missing or shapes:
        problems = [
            f"{words} {', '.join(names[:3])}"
            for words, names in (("shapes of", shapes), ("unknown", strange), ("missing", missing))
            if names
        ]
        raise ArtifactError(
            f"{source} doesn't fit the model: {'; '.join(problems)}",
            expected="a tensor of the same name and shape for each of the model's",
            action="name the architecture that these weights were trained as, or other weights",
        )
