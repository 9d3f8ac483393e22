"""Public captioners by address: CoCas of open_clip's layout, and image-to-text models' folders.

A folder or repository whose config has a ``multimodal_cfg`` is a CoCa: open_clip writes it into
``open_clip_config.json``, MobileCLIP2's repositories hold it as ``config.json``. Any other folder
is one that transformers' ``save_pretrained`` wrote.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.models.weights.addresses import Address
from clipmill.models.weights.files import HubFile, hub_file
from clipmill.models.weights.open_clip_layout import (
    CONFIG_FILE,
    WEIGHTS_FILES,
    common_preprocessing,
    model_config,
    pretrained_config,
    pretrained_file,
)

# What may decide what a model of transformers says; a folder often holds other things too.
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_TRANSFORMERS_CONFIG = "config.json"
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenClipCoca:
    """A CoCa in open_clip's layout."""

    source: str
    """Its address, with the repository's commit where there is one."""
    config: Mapping[str, Any]
    """open_clip's model config."""
    preprocessing: Mapping[str, Any]
    """Preprocessing of the weights' images, in open_clip's words; empty for its defaults."""
    path: Path
    """The file of weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """A folder as transformers' ``save_pretrained`` writes it."""

    source: str
    """Its address, with the repository's commit where there is one."""
    path: Path
    """The folder."""


def find_captioner(address: Address) -> OpenClipCoca | ModelFolder:
    """Find a captioner that another library published, downloading what isn't cached.

    Raises:
        ConfigError: no such model or weights, or none that writes captions.
        NotFoundError: no such file, or none within reach.
        ArtifactError: a folder whose model can't be told.
    """
    if address.scheme == "open_clip":
        _check_coca(address.text, model_config(address.name))
        config, preprocessing, file = pretrained_file(address)
        return _coca(address.text, config, preprocessing, file)
    if address.scheme == "hf":
        return _repository(address)
    assert address.scheme == "file", address
    return _local(address)


def _coca(
    source: str, config: Mapping[str, Any], preprocessing: Mapping[str, Any], file: HubFile
) -> OpenClipCoca:
    _check_coca(source, config)
    if file.revision and "@" not in source:
        source = f"{source}@{file.revision}"
    return OpenClipCoca(source=source, config=config, preprocessing=preprocessing, path=file.path)


def _check_coca(source: str, config: Mapping[str, Any]) -> None:
    """Refuse what isn't a CoCa whose texts are of CLIP's tokens (ConfigError)."""
    text = config.get("text_cfg", {})
    if "multimodal_cfg" not in config:
        reason = "it is a CLIP, which can't write"
    elif text.get("hf_model_name") or text.get("vocab_size") != 49408:
        reason = "its text tower doesn't read CLIP's tokens"
    elif not config.get("vision_cfg", {}).get("attentional_pool"):
        reason = "its image tower has no attentional pooler"
    else:
        return
    raise ConfigError(
        f"{source} can't be a captioner: {reason}",
        expected="a CoCa such as open_clip:coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k",
        action="choose a CoCa of open_clip, or an image-to-text model as hf:ORG/NAME",
    )


def _repository(address: Address) -> OpenClipCoca | ModelFolder:
    url = f"https://huggingface.co/{address.name}"

    def get(names: Sequence[str], *, is_optional: bool = False) -> HubFile | None:
        return hub_file(address.name, names, revision=address.tag, is_optional=is_optional)

    config = get((CONFIG_FILE,), is_optional=True) or get((_TRANSFORMERS_CONFIG,))
    if config is None:
        raise NotFoundError(
            f"{url} has neither {CONFIG_FILE} nor {_TRANSFORMERS_CONFIG}",
            expected="a repository of open_clip's, or of a model of transformers",
            action="choose another repository",
        )
    source = f"hf:{address.name}@{config.revision}"
    coca = _coca_config(config.path)
    names = WEIGHTS_FILES if coca else _SAFETENSORS
    weights = get(names)
    if weights is None:
        raise NotFoundError(
            f"{url} has none of {', '.join(names)}",
            expected="weights under one of these names; those in pickles of transformers aren't "
            "read",
            action="download the repository, and give it as file:FOLDER"
            if coca
            else "load it with transformers, save_pretrained it, and give that as file:FOLDER",
        )
    if coca:
        return _coca(source, *coca, weights)
    return ModelFolder(source=source, path=_download(address.name, weights.revision))


def _download(repository: str, revision: str) -> Path:
    """The repository's files for transformers, in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(MODEL_FILES))
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise NotFoundError(
            f"https://huggingface.co/{repository} can't be downloaded: "
            f"{str(error).splitlines()[0]}",
            expected="its files in the hub's cache (HF_HOME), or a network to get them from",
            action=f"run `hf download {repository}` where there is a network, and give the folder "
            "as file:FOLDER",
        ) from error


def _local(address: Address) -> OpenClipCoca | ModelFolder:
    path = Path(address.name).expanduser().absolute()
    if not path.exists():
        raise NotFoundError(
            f"{path} doesn't exist",
            expected="a file of a CoCa's weights, or the folder of a model",
            action="correct the path after file:",
        )
    if path.is_dir():
        return _folder(path)
    file = HubFile(path=path, revision="")
    if address.library == "open_clip":
        name, _, tag = address.architecture.partition("/")
        config, preprocessing = (
            pretrained_config(name, tag)
            if tag
            else (model_config(name), common_preprocessing(name))
        )
        return _coca(f"file:{path}#open_clip/{name}", config, preprocessing, file)
    coca = _config_in_folder(path.parent)
    if coca is None or address.library:
        raise ConfigError(
            f"{address.text} doesn't say which CoCa's weights it holds",
            expected=f"file:{address.name}#open_clip/NAME, or {CONFIG_FILE} beside the file",
            action="name the architecture, such as #open_clip/coca_ViT-L-14",
        )
    return _coca(f"file:{path}", *coca, file)


def _folder(path: Path) -> OpenClipCoca | ModelFolder:
    coca = _config_in_folder(path)
    if coca is None:
        return ModelFolder(source=f"file:{path}", path=path)
    named = [path / name for name in WEIGHTS_FILES if (path / name).is_file()]
    files = named[:1] or [file for file in path.iterdir() if file.suffix in _WEIGHTS_SUFFIXES]
    if len(files) != 1:
        raise ArtifactError(
            f"{path} holds a CoCa's config, and {len(files)} files of weights",
            expected=f"one file that ends in {', '.join(_WEIGHTS_SUFFIXES)}",
            action="give the file: file:PATH",
        )
    return _coca(f"file:{path}", *coca, HubFile(path=files[0], revision=""))


def _config_in_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    for name in (CONFIG_FILE, _TRANSFORMERS_CONFIG):
        if (folder / name).is_file():
            return _coca_config(folder / name)
    return None


def _coca_config(file: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """A CoCa's config and preprocessing; None where the file is another model's.

    Raises:
        ArtifactError: it isn't a JSON object.
    """
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{file} can't be read as JSON: {error}",
            expected="the config of a model",
            action="download or save the model again",
        ) from error
    if file.name == CONFIG_FILE:
        return dict(value.get("model_cfg", {})), dict(value.get("preprocess_cfg", {}))
    if isinstance(value, dict) and "multimodal_cfg" in value:
        return value, {}
    return None
