"""CLIP at an address, with its preprocessing and tokenizer; and a trained CLIP as an embedder.

Shapes: B images, M texts, T text length, D embedding width, S the image tower's side.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.lineage import Parent
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.config import ClipConfig, VisionConfig
from clipmill.models.preprocess import tower_image
from clipmill.models.pretrained import read_encoder_metadata
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.towers import build_clip
from clipmill.models.weights.addresses import parse_address
from clipmill.models.weights.files import check_fit

if TYPE_CHECKING:
    from torch import Tensor

    from clipmill.models.weights.public import PublicWeights


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipModel:
    """A CLIP in evaluation mode."""

    model: Any
    """Module with ``encode_image`` and ``encode_text``."""
    vision: VisionConfig
    """The image tower and its preprocessing."""
    tokenize: "Callable[[list[str]], Tensor]"
    """Texts to token ids (B, T)."""

    def encode_images(self, images: Sequence[Image.Image]) -> "Tensor":
        """Return unit embeddings (B, D), each image resized and normalized as the weights' own."""
        import torch

        from clipmill.models.encoders import Normalize

        device = next(self.model.parameters()).device
        squares = [tower_image(image.convert("RGB"), self.vision) for image in images]
        pixels_B3SS = torch.from_numpy(np.stack(squares)).to(device).permute(0, 3, 1, 2)
        normalize = Normalize(self.vision.mean, self.vision.std).to(device)
        with torch.inference_mode():
            embedding_BD: Tensor = self.model.encode_image(
                normalize(pixels_B3SS.float() / 255), normalize=True
            )
        return embedding_BD

    def encode_texts(self, texts: Sequence[str]) -> "Tensor":
        """Return unit embeddings (M, D)."""
        import torch

        device = next(self.model.parameters()).device
        with torch.inference_mode():
            embedding_MD: Tensor = self.model.encode_text(
                self.tokenize(list(texts)).to(device), normalize=True
            )
        return embedding_MD


def clip_parent(address: str, role: str, *, seed: int = 0) -> Parent:
    """Return the CLIP at an address as a parent; ``seed`` is that of random weights.

    Raises:
        ConfigError, NotFoundError: no such form or weights.
        ArtifactError: something without a text tower lies there.
    """
    if parse_address(address).scheme == "clipmill":
        return read_encoder_metadata(address, ("clip",)).as_parent(role)
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

    Example:
        >>> clip = clipmill.load_clip("random:open_clip/ViT-S-32-alt")
        >>> images = clip.encode_images([Image.open("image.jpg")])
        >>> texts = clip.encode_texts(["a cube", "a sphere"])
        >>> (images @ texts.T).shape
        torch.Size([1, 2])
    """
    if parse_address(address).scheme == "clipmill":
        read_encoder_metadata(address, ("clip",))
        metadata, tensors = load_checkpoint(address)
        return _build(address, ClipConfig.from_stored(metadata.architecture, address), tensors)
    import torch

    from clipmill.models.weights.public import find_weights

    weights = find_weights(address)
    if weights.clip is None and _has_text(weights):
        return _load_open_clip(weights)
    config = weights.both_towers()
    if weights.path is not None:
        return _build(address, config, weights.tensors())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(address, config, None)


def _build(address: str, config: ClipConfig, tensors: "Mapping[str, Tensor] | None") -> ClipModel:
    model = build_clip(config)
    if tensors is not None:
        check_fit(address, tensors, model.state_dict())
        model.load_state_dict(tensors)
    return ClipModel(
        model=model.eval(), vision=config.vision, tokenize=Tokenizer.from_config(config.text)
    )


def _has_text(weights: "PublicWeights") -> bool:
    """Return whether open_clip has the text tower of weights in its layout."""
    return bool(weights.open_clip_config) and weights.path is not None


def _load_open_clip(weights: "PublicWeights") -> ClipModel:
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
            f"the tokenizer or text config of {weights.address} can't be loaded: "
            f"{str(error).splitlines()[0]}",
            expected="them in the hub's cache, or the tokenizer's files next to the weights",
            action="download the tokenizer's files into the folder of the weights, and give it as "
            "file:FOLDER",
        ) from error
    try:
        open_clip.load_checkpoint(model, str(weights.path))
    except (RuntimeError, KeyError) as error:
        raise ArtifactError(
            f"{weights.address} doesn't fit its own config: {str(error).splitlines()[0]}",
            expected="the weights that the config next to them describes",
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
        tokenizer: Callable[[Sequence[str]], Tensor] = HFTokenizer(
            str(folder) if has_own else name, context_length=length, **options
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"the tokenizer {name} can't be built: {str(error).splitlines()[0]}",
            expected="transformers, and the tokenizer's own packages",
            action="install what the message names",
        ) from error
    return tokenizer


class ClipEmbedder:
    """Both towers on this machine's device, their branches fused: unit vectors as numpy arrays."""

    def __init__(
        self,
        config: ClipConfig,
        tensors: "Mapping[str, Tensor]",
        *,
        backend: Literal["torch", "onnx"] = "torch",
        name: str = "the model",
    ) -> None:
        """Build both towers; with the backend ``onnx`` ONNX Runtime runs that of images, on a CPU.

        Raises:
            ConfigError: the tower of the model ``name`` can't run with this backend.
        """
        import torch

        from clipmill.models.encoders import Normalize
        from clipmill.models.execution import fuse_branches

        model = build_clip(config)
        model.load_state_dict(tensors)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        fused = fuse_branches(model)
        if backend == "onnx":
            from clipmill.models.onnx_runtime import OnnxModule

            fused.visual = OnnxModule(fused.visual, name, side=config.vision.image_size)
        self._model = fused.to(self._device)
        self._vision = config.vision
        self._normalize = Normalize(config.vision.mean, config.vision.std).to(self._device)
        self._tokenize = Tokenizer.from_config(config.text)
        self.scale = float(model.logit_scale.detach().exp())
        """CLIP's logit scale: the factor of the cosines."""
        self.bias = 0.0 if model.logit_bias is None else float(model.logit_bias.detach())
        """Bias added to the scaled cosines (SigLIP); 0 without one."""

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the image (S, S, 3) uint8 at the tower's size."""
        square_SS3: NDArray[np.uint8] = tower_image(image, self._vision)
        return square_SS3

    def encode_images(self, prepared: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return unit embeddings (B, D) of prepared images."""
        import torch

        pixels_B3SS = torch.from_numpy(np.stack(prepared)).to(self._device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return _l2_normalize(
                self._model.encode_image(self._normalize(pixels_B3SS.float().div_(255)))
            )

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit embeddings (M, D)."""
        import torch

        with torch.inference_mode():
            return _l2_normalize(self._model.encode_text(self._tokenize(texts).to(self._device)))


def _l2_normalize(embedding_BD: "Tensor") -> NDArray[np.float32]:
    from torch.nn import functional as F

    unit_BD: NDArray[np.float32] = F.normalize(embedding_BD.float(), dim=-1).cpu().numpy()
    return unit_BD
