"""Public weights by address: their towers, their file and its digest, and the tensors.

An address (:mod:`clipmill.models.weights.addresses`) becomes a :class:`PublicWeights`: the towers
as the weights' own config describes them, the file with its digest, and the tensors on demand.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipmill.config import digest_json, sha256_file
from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.lineage import Parent
from clipmill.models.config import ClipConfig, VisionConfig
from clipmill.models.towers import check_timm_model
from clipmill.models.weights import open_clip_layout, timm_layout, transformers_layout
from clipmill.models.weights.addresses import Address, parse_address
from clipmill.models.weights.files import (
    OPENAI_KEYS,
    HubFile,
    hub_file,
    is_torchscript,
    read_tensors,
)
from clipmill.models.weights.transformers_layout import read_json_file

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["open_clip", "timm", "transformers"]
_TIMM_CONFIG = "config.json"  # transformers' too


@dataclass(frozen=True, kw_only=True)
class PublicWeights:
    """Weights that another library published, or random ones of an architecture."""

    address: str
    """The address that they were found by."""
    layout: Layout
    """Library whose layout they have."""
    vision: VisionConfig
    """The image tower."""
    clip: ClipConfig | None = None
    """Both towers, where the weights have a text tower that clipmill has too."""
    image_only: str = ""
    """Why there is no text tower."""
    open_clip_config: Mapping[str, Any] = field(default_factory=dict)
    """open_clip's own model config, of weights in its layout."""
    path: Path | None = None
    """The file of the weights; None for random ones."""
    revision: str = ""
    """Commit of the repository of the Hugging Face hub that has them, if one does."""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file's content; empty for random weights."""
        return sha256_file(self.path) if self.path else ""

    @property
    def digest(self) -> str:
        """Digest of the towers and of the file's content."""
        config = self.clip or self.vision
        return digest_json([config.to_json(), self.sha256 or "random weights"])

    def as_parent(self, role: str) -> Parent:
        """Return these weights as an artifact's parent."""
        return Parent(role=role, uri=self.address, digest=self.digest)

    @property
    def summary(self) -> dict[str, str]:
        """Source, revision and digest of the weights, and the preprocessing of their images."""
        vision = self.vision
        weights = {
            "weights": self.path.name if self.path else "random",
            "weights sha256": self.sha256,
            "revision": self.revision,
            "text tower": f"none: {self.image_only}" if self.image_only else "",
        }
        images = {
            "image size": f"{vision.image_size} px, {vision.resize}, {vision.interpolation}",
            "mean": " ".join(f"{m:g}" for m in vision.mean),
            "std": " ".join(f"{s:g}" for s in vision.std),
        }
        return {
            "source": self.address,
            **{name: text for name, text in weights.items() if text},
            **images,
        }

    def tensors(self) -> "dict[str, Tensor]":
        """Read the tensors under CLIP's names: ``visual.`` and, with :attr:`clip`, the text's.

        Raises:
            ArtifactError: the file is cut, holds more than tensors, or another model's.
        """
        assert self.path is not None
        if self.layout == "timm":
            return timm_layout.read_tower_tensors(self.path, self.vision)
        if self.layout == "open_clip":
            return open_clip_layout.read_clip_tensors(self.path, self.vision, self.clip)
        if self.vision.timm_model:
            return transformers_layout.read_siglip_tensors(self.path, self.vision)
        return transformers_layout.read_clip_tensors(self.path, self.vision, self.clip)

    def both_towers(self) -> ClipConfig:
        """Return the config of both towers.

        Raises:
            ArtifactError: there is no text tower, or none that clipmill has.
        """
        if self.clip is None:
            raise ArtifactError(
                f"{self.address} has no text tower for this command: {self.image_only}",
                expected="a CLIP with both towers and CLIP's own tokenizer",
                action="choose a CLIP, such as open_clip:ViT-B-16/datacomp_xl_s13b_b90k",
            )
        return self.clip


def find_weights(text: str) -> PublicWeights:
    """Find the weights at an address other than a clipmill URI, downloading what isn't cached.

    Raises:
        ConfigError: the address isn't whole, names nothing known, or an architecture that
            clipmill doesn't have.
        NotFoundError: no such file, or none within reach.
        ArtifactError: a file whose architecture can't be told.
    """
    address = parse_address(text)
    if address.scheme == "open_clip":
        config, preprocessing, file = open_clip_layout.pretrained_file(address)
        return _open_clip_weights(address, config, preprocessing, file)
    if address.scheme == "timm":
        vision, file = timm_layout.pretrained_file(address)
        return _timm_weights(address, vision, file)
    if address.scheme == "random":
        return _random_weights(address)
    if address.scheme == "hf":
        get = partial(_hub_file, address)
        return _model_folder(address, get, f"https://huggingface.co/{address.name}")
    assert address.scheme == "file", text
    return _local_weights(address)


def check_names(text: str) -> None:
    """Refuse an address whose names open_clip or timm doesn't have; nothing is downloaded.

    Raises:
        ConfigError: as :func:`find_weights`.
    """
    address = parse_address(text)
    if address.scheme == "open_clip":
        config, preprocessing = open_clip_layout.pretrained_config(address.name, address.tag)
        open_clip_layout.towers(text, config, preprocessing)
    elif address.scheme == "timm":
        timm_layout.pretrained_tower(address.name, address.tag)
    elif address.scheme == "random":
        _random_weights(address)


def _random_weights(address: Address) -> PublicWeights:
    if address.library == "timm":
        vision = VisionConfig(timm_model=address.name)
        check_timm_model(vision)
        return PublicWeights(
            address=address.text, layout="timm", vision=vision, image_only="timm's model has none"
        )
    config = open_clip_layout.model_config(address.name)
    vision, clip, image_only = open_clip_layout.towers(address.text, config, {})
    return PublicWeights(
        address=address.text,
        layout="open_clip",
        vision=vision,
        clip=clip,
        image_only=image_only,
        open_clip_config=config,
    )


def _open_clip_weights(
    address: Address, config: Mapping[str, Any], preprocessing: Mapping[str, Any], file: HubFile
) -> PublicWeights:
    vision, clip, image_only = open_clip_layout.towers(address.text, config, preprocessing)
    return PublicWeights(
        address=address.text,
        layout="open_clip",
        vision=vision,
        clip=clip,
        image_only=image_only,
        open_clip_config=config,
        path=file.path,
        revision=file.revision,
    )


def _timm_weights(address: Address, vision: VisionConfig, file: HubFile) -> PublicWeights:
    return PublicWeights(
        address=address.text,
        layout="timm",
        vision=vision,
        image_only="timm's model has none",
        path=file.path,
        revision=file.revision,
    )


def _model_folder(
    address: Address, get: "_Get", source: str, weights: Path | None = None
) -> PublicWeights:
    """Return the weights next to their config, in a hub repository or a local folder.

    ``get`` returns the first of some files that is there; ``weights`` is the file to take.
    """

    def weights_file(names: Sequence[str]) -> HubFile:
        file = HubFile(path=weights, revision="") if weights else get(names)
        if file is None:
            raise NotFoundError(
                f"{source} has none of {', '.join(names)}",
                expected="the weights next to their config, in one file",
                action="choose other weights, or save these in one file",
            )
        return file

    # A repository may hold the same weights in several layouts; open_clip's has both towers.
    is_open_clip = weights is None or weights.name.startswith("open_clip")
    config_file = get((open_clip_layout.CONFIG_FILE,)) if is_open_clip else None
    if config_file is not None:
        value = read_json_file(config_file.path)
        if not isinstance(value.get("model_cfg"), dict):
            raise ConfigError(
                f"{config_file.path} has no model_cfg",
                expected="a config that open_clip wrote",
                action="choose other weights",
            )
        return _open_clip_weights(
            address,
            value["model_cfg"],
            value.get("preprocess_cfg", {}),
            weights_file(open_clip_layout.WEIGHTS_FILES),
        )
    config_file = get((_TIMM_CONFIG,))
    if config_file is None:
        raise NotFoundError(
            f"{source} has neither {open_clip_layout.CONFIG_FILE} nor {_TIMM_CONFIG}",
            expected="a model as open_clip, timm or transformers saves it",
            action="choose other weights; a file of a state dict alone is file:PATH#LIBRARY/NAME",
        )
    value = read_json_file(config_file.path)
    if "architecture" in value:
        vision = timm_layout.tower(
            str(value["architecture"]),
            value.get("model_args", {}),
            value.get("pretrained_cfg", value),
        )
        return _timm_weights(address, vision, weights_file(timm_layout.WEIGHTS_FILES))
    preprocessing = get((transformers_layout.PREPROCESSING_FILE,))
    vision, clip, image_only = transformers_layout.towers(
        address.text, value, read_json_file(preprocessing.path) if preprocessing else {}
    )
    file = weights_file(transformers_layout.WEIGHTS_FILES)
    return PublicWeights(
        address=address.text,
        layout="transformers",
        vision=vision,
        clip=clip,
        image_only=image_only,
        path=file.path,
        revision=file.revision,
    )


_Get = Callable[[Sequence[str]], HubFile | None]


def _hub_file(address: Address, names: Sequence[str]) -> HubFile | None:
    is_optional = names[0].endswith(".json") and names[0] != _TIMM_CONFIG
    return hub_file(address.name, names, revision=address.tag, is_optional=is_optional)


def _local_weights(address: Address) -> PublicWeights:
    """Return the weights in a file or folder on this machine."""
    path = Path(re.sub(r"^//+(?:localhost(?=/))?", "/", address.name)).expanduser()
    if not path.exists():
        raise NotFoundError(
            f"{path} doesn't exist",
            expected="a file of weights, or the folder of a model",
            action="correct the path after file:",
        )
    if address.architecture:
        if path.is_dir():
            raise ConfigError(
                f"{address.text} names an architecture for a folder",
                expected="a file before the #; a folder says its architecture itself",
                action="leave out what follows the #, or name the file in the folder",
            )
        file = HubFile(path=path, revision="")
        if address.library == "timm":
            name, _, tag = address.architecture.partition(".")
            if tag:
                return _timm_weights(address, timm_layout.pretrained_tower(name, tag)[0], file)
            return _timm_weights(address, timm_layout.tower(name, {}), file)
        name, _, tag = address.architecture.partition("/")
        if tag:
            return _open_clip_weights(address, *open_clip_layout.pretrained_config(name, tag), file)
        config = open_clip_layout.model_config(name)
        return _open_clip_weights(
            address, config, open_clip_layout.common_preprocessing(name), file
        )
    folder = path if path.is_dir() else path.parent

    def get(names: Sequence[str]) -> HubFile | None:
        paths = [folder / name for name in names if (folder / name).is_file()]
        return HubFile(path=paths[0], revision="") if paths else None

    weights = None if path.is_dir() else path
    if path.is_dir() or get((open_clip_layout.CONFIG_FILE, _TIMM_CONFIG)):
        return _model_folder(address, get, str(folder), weights)
    return _bare_file(address, path)


def _bare_file(address: Address, path: Path) -> PublicWeights:
    """Return the weights of a state dict without a config, if its shapes fit one open_clip ViT."""
    tensors = read_tensors(path)
    names = open_clip_layout.known_architectures(tensors)
    quick = [name for name in names if name.endswith("-quickgelu")]
    if is_torchscript(path) or any(key in tensors for key in OPENAI_KEYS):
        names = quick or names  # OpenAI's own archives, all of which were trained with QuickGELU
    if len(names) == 1:
        config = open_clip_layout.model_config(names[0])
        preprocessing = open_clip_layout.common_preprocessing(names[0])
        return _open_clip_weights(address, config, preprocessing, HubFile(path=path, revision=""))
    if names:
        choices = [f"file:{address.name}#open_clip/{name}" for name in names]
        raise ArtifactError(
            f"the tensors of {path} fit {' and '.join(names)}, and don't say which they were "
            "trained as",
            expected=" or ".join(choices),
            action="name the architecture; QuickGELU is OpenAI's, DFN's and MetaCLIP's",
        )
    example = "timm/vit_base_patch16_224"
    if any(k.startswith("visual.") for k in tensors):
        example = "open_clip/MobileCLIP-S1"
    raise ArtifactError(
        f"the architecture of {path} can't be determined from its tensors, "
        f"{', '.join(list(tensors)[:2])} and {max(len(tensors) - 2, 0)} more",
        expected=f"file:{address.name}#LIBRARY/NAME, such as #{example}, or the model's config "
        "next to the file",
        action="name the architecture after the path",
    )
