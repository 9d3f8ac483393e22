"""A CLIP at an address, ready to embed: towers, preprocessing and tokenizer."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.models.weights.addresses import parse_address
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.pretrained import read_encoder_card
from clipmill.models.weights.files import check_fit
from clipmill.models.towers import build_clip
from clipmill.models.config import ClipConfig, VisionConfig
from clipmill.lineage import Parent

if TYPE_CHECKING:
    from torch import Tensor

    from clipmill.models.weights.public import PublicWeights


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipModel:
    """A CLIP in evaluation mode."""

    model: Any
    """Module with ``encode_image`` and ``encode_text``."""
    vision: VisionConfig
    """The image tower, and how it wants its images."""
    tokenize: "Callable[[list[str]], Tensor]"
    """Texts to token ids (B, T)."""


def clip_parent(address: str, role: str, *, seed: int = 0) -> Parent:
    """Return the CLIP at an address as a parent; ``seed`` is that of random weights.

    Raises:
        ConfigError, NotFoundError: no such form or weights.
        ArtifactError: something without a text tower lies there.
    """
    if parse_address(address).scheme == "clipmill":
        return read_encoder_card(address, ("clip",)).as_parent(role)
    from clipmill.models.weights.public import find_weights

    weights = find_weights(address)
    if not _has_text(weights):
        weights.both_towers()
    parent = weights.as_parent(role)
    if weights.path is None:
        return Parent(role=role, uri=address, digest=f"{parent.digest}-{seed}")
    return parent


def load_clip(address: str, *, seed: int = 0) -> ClipModel:
    """Load the CLIP at an address; ``seed`` is that of random weights.

    Text towers that clipmill doesn't have run as open_clip's own.

    Raises:
        ConfigError, NotFoundError, ArtifactError: as :func:`clip_parent`, or the weights don't fit.
    """
    if parse_address(address).scheme == "clipmill":
        read_encoder_card(address, ("clip",))
        card, tensors = load_checkpoint(address)
        return _built(address, ClipConfig.from_json(card.architecture), tensors)
    import torch

    from clipmill.models.weights.public import find_weights

    weights = find_weights(address)
    if weights.clip is None and _has_text(weights):
        return _of_open_clip(weights)
    config = weights.both_towers()
    if weights.path is not None:
        return _built(address, config, weights.tensors())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _built(address, config, None)


def _built(address: str, config: ClipConfig, tensors: "Mapping[str, Tensor] | None") -> ClipModel:
    model = build_clip(config)
    if tensors is not None:
        check_fit(address, tensors, model.state_dict())
        model.load_state_dict(tensors)
    return ClipModel(model=model.eval(), vision=config.vision, tokenize=config.text.tokenizer())


def _has_text(weights: "PublicWeights") -> bool:
    """Whether open_clip has the text tower of weights in its layout."""
    return bool(weights.open_clip_config) and weights.path is not None


def _of_open_clip(weights: "PublicWeights") -> ClipModel:
    """open_clip's own towers and tokenizer, for text towers such as SigLIP's."""
    import open_clip

    config = copy.deepcopy(dict(weights.open_clip_config))
    text = config["text_cfg"]
    is_custom = config.pop("custom_text", False) or "hf_model_name" in text
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False  # the file has them
    assert weights.path is not None
    try:
        model = (kind if is_custom else open_clip.CLIP)(**config)
        tokenize = _open_clip_tokenizer(text, weights.path.parent)
    except OSError as error:
        raise NotFoundError(
            f"the tokenizer or text config of {weights.address} can't be had: "
            f"{str(error).splitlines()[0]}",
            expected="them in the hub's cache, or the tokenizer's files beside the weights",
            action="download the tokenizer's files into the folder of the weights, and give it as "
            "file:FOLDER",
        ) from error
    try:
        open_clip.load_checkpoint(model, str(weights.path))
    except (RuntimeError, KeyError) as error:
        raise ArtifactError(
            f"{weights.address} doesn't fit its own config: {str(error).splitlines()[0]}",
            expected="the weights that the config beside them describes",
            action="download both again",
        ) from error
    return ClipModel(model=model.eval(), vision=weights.vision, tokenize=tokenize)


def _open_clip_tokenizer(
    text: Mapping[str, Any], folder: Path
) -> "Callable[[Sequence[str]], Tensor]":
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    length = text.get("context_length", 77)
    name = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    options = text.get("tokenizer_kwargs") or {}
    if not name:
        simple: Callable[[Sequence[str]], Tensor] = SimpleTokenizer(context_length=length)
        return simple
    has_own = (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()
    try:
        found: Callable[[Sequence[str]], Tensor] = HFTokenizer(
            str(folder) if has_own else name, context_length=length, **options
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"the tokenizer {name} can't be made: {str(error).splitlines()[0]}",
            expected="transformers, and the tokenizer's own packages",
            action="install what the message names",
        ) from error
    return found
