"""Copying a start's weights into a fresh CLIP."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipmill.errors import ArtifactError, NotFoundError
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.encoders import head_prefixes
from clipmill.models.towers import ClipConfig
from clipmill.pretrain.start import Start


def load_start(start: Start, clip: nn.Module, config: ClipConfig) -> None:
    """Copy the weights in; what an image tower alone doesn't bring keeps its start values.

    Raises:
        ArtifactError: the weights don't fit the model, or the file holds more than tensors.
        NotFoundError: the library doesn't have them, or can't reach them.
    """
    tensors = _tensors(start)
    own = clip.state_dict()
    optional: tuple[str, ...] = ("logit_bias",)
    if start.source in {"tower", "timm"}:
        heads = head_prefixes(config.vision)
        tensors = {
            k: v for k, v in tensors.items() if k.startswith("visual.") and not k.startswith(heads)
        }
        optional = (*heads, *(k for k in own if not k.startswith("visual.")))
    elif "logit_bias" not in own:
        tensors.pop("logit_bias", None)
    strange = [k for k, v in tensors.items() if k not in own or own[k].shape != v.shape]
    missing = [k for k in own if k not in tensors and not k.startswith(optional)]
    if strange or missing:
        raise ArtifactError(
            f"{start.parent.uri} doesn't fit the model at {', '.join([*strange, *missing][:3])}",
            expected="a tensor of the same name and shape for each of the model's",
            action="set model to what these weights were trained as, or choose others for init",
        )
    clip.load_state_dict(tensors, strict=False)


def _tensors(start: Start) -> dict[str, Tensor]:
    """Weights under the names that open_clip's CLIP gives them."""
    uri = start.parent.uri
    if start.source in {"clip", "tower"}:
        return load_checkpoint(uri)[1]
    if start.source == "file":
        return _plain_names(_read_file(Path(uri)))
    name = uri.partition(":")[2]
    try:
        if start.source == "timm":
            import timm

            trunk = timm.create_model(name, pretrained=True, num_classes=0)
            return {f"visual.trunk.{k}": v for k, v in trunk.state_dict().items()}
        import open_clip

        model, _, tag = name.partition("/")
        return _plain_names(open_clip.create_model(model, pretrained=tag).state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        raise NotFoundError(
            f"{uri} can't be had: {error}",
            expected="weights that the library knows, and a network or its cache to get them from",
            action="correct the name, or download the file and give its path as init",
        ) from error


def _read_file(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ArtifactError(
            f"{path} can't be read as weights: {str(error).splitlines()[0]}",
            expected="a whole file that holds tensors and nothing that must be executed",
            action="save it again as safetensors where it comes from",
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]  # open_clip's training checkpoints
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ArtifactError(
            f"{path} holds a {type(found).__name__} that isn't weights by name",
            expected="tensors by name, alone or under state_dict",
            action="save the model's state_dict",
        )
    return found


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of DDP, and of open_clip's towers that have their text apart."""
    return {k.removeprefix("module.").removeprefix("text."): v for k, v in tensors.items()}
