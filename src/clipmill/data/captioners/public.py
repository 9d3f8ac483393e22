"""Public captioners by address: CoCas of open_clip, and image-to-text models of Hugging Face.

A folder or repository whose config has a ``multimodal_cfg`` is a CoCa: open_clip writes it into
``open_clip_config.json``, MobileCLIP2's repositories hold it as ``config.json``. Any other folder
is one that transformers' ``save_pretrained`` wrote (BLIP, GIT, ...).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clipmill.config import canonical_json, digest_json, sha256_file
from clipmill.data.captioners.base import CaptionInput, CaptionOutput, make_output, sample_seed
from clipmill.data.captioners.config import HuggingFaceConfig
from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.lineage import Parent
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


class HuggingFaceCaptioner:
    """The image-to-text model in a folder that ``save_pretrained`` wrote.

    Only safetensors are read, no code of the folder is run, and nothing is downloaded. ``source``
    is the folder's address, for the captions' lineage. Raises ArtifactError for any other folder.
    """

    needs_images = True
    checkpoint_outputs = False

    def __init__(
        self,
        folder: str | Path,
        config: HuggingFaceConfig,
        *,
        source: str = "",
        batch_size: int = 1,
        num_threads: int = 0,
    ) -> None:
        self._folder = Path(folder).absolute()
        source = source or str(self._folder)
        self._config = config
        self._num_threads = num_threads
        self._model: _Model | None = None
        self.model_type = _model_type(self._folder)
        files = sorted({path for pattern in MODEL_FILES for path in self._folder.glob(pattern)})
        digest = digest_json([[path.name, sha256_file(path)] for path in files])
        self.parents: tuple[Parent, ...] = (Parent(role="captioner", uri=source, digest=digest),)
        # A batch is sampled with one stream of random numbers.
        drawn_together = batch_size if config.method == "top_p" else 0
        self.identity = digest_json([digest, config.digest, drawn_together])
        self.detail: Mapping[str, str] = {
            "model": f"{self.model_type} {source}",
            "prompt": config.prompt,
            "sampling": canonical_json(config.to_json()),
            "seed": str(config.seed),
        }

    def caption(self, inputs: Sequence[CaptionInput]) -> Iterator[tuple[int, CaptionOutput]]:
        """Caption all samples in one batch."""
        model = self._model = self._model or _Model(self._folder, self._config, self._num_threads)
        images = [i.image for i in inputs if i.image is not None]
        assert len(images) == len(inputs)
        captions = model.generate(images, sample_seed(self._config.seed, inputs[0].uid))
        for index, (texts, scores) in enumerate(captions):
            yield index, make_output(texts, scores)

    def close(self) -> None:
        """Release the model."""
        self._model = None


class _Model:
    """The loaded model with its processor."""

    def __init__(self, folder: Path, config: HuggingFaceConfig, num_threads: int) -> None:
        import torch
        import transformers

        from clipmill.models.execution import set_num_threads

        # Their classes are made at import, so nothing is known of their types.
        auto: Any = transformers

        set_num_threads(num_threads)
        self._config = config
        on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if on_gpu else "cpu")
        bf16 = config.precision == "bf16" or (config.precision == "auto" and on_gpu)
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._images, self._tokenizer = _processors(auto, folder, local)
            self._model, loading = auto.AutoModelForImageTextToText.from_pretrained(
                folder,
                use_safetensors=True,
                torch_dtype=self._dtype,
                output_loading_info=True,
                **local,
            )
        except Exception as error:  # a foreign folder makes transformers raise anything
            raise ArtifactError(
                f"{folder} can't be loaded: {str(error).splitlines()[0]}",
                expected="an image-to-text model with its processor, saved by save_pretrained",
                action="pass the complete folder of such a model",
            ) from error
        if missing := sorted(loading["missing_keys"]):
            # transformers fills them with random numbers and only warns.
            raise ArtifactError(
                f"{folder} lacks {len(missing)} tensors of its model, such as {missing[0]}",
                expected=f"all weights under the names of transformers {_transformers_version()}",
                action="save the model with that version of transformers, or another model's "
                "complete folder: later versions leave out tensors that this one needs",
            )
        if config.prompt and not hasattr(self._images, "tokenizer"):
            raise ConfigError(
                f"prompt was {config.prompt!r}, and the model in {folder} takes none",
                expected="an empty prompt for a model whose processor reads images alone",
                action="leave out huggingface.prompt",
            )
        self._model.to(self._device).eval()

    def generate(self, images: Sequence[Any], seed: int) -> list[tuple[list[str], list[float]]]:
        """Return each image's texts, with the mean log probability of their tokens."""
        import torch

        config = self._config
        prompt = {"text": [config.prompt] * len(images)} if config.prompt else {}
        encoded = self._images(
            # Explicit: for an image three pixels high it would be guessed wrong.
            images=list(images),
            input_data_format="channels_last",
            return_tensors="pt",
            **prompt,
        )
        encoded = encoded.to(self._device)
        encoded["pixel_values"] = encoded["pixel_values"].to(self._dtype)
        sampling = {"do_sample": True, "top_p": config.top_p, "temperature": config.temperature}
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed)
            output = self._model.generate(
                **encoded,
                max_new_tokens=config.max_new_tokens,
                num_return_sequences=config.num_captions,
                return_dict_in_generate=True,
                output_scores=True,
                **(sampling if config.method == "top_p" else {"num_beams": config.num_beams}),
            )
            scores = self._scores(output)
        texts = self._tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
        texts = [self._without_prompt(text) for text in texts]
        count = config.num_captions
        return [
            (texts[start : start + count], scores[start : start + count])
            for start in range(0, len(texts), count)
        ]

    def _scores(self, output: Any) -> list[float]:
        import torch

        beams = getattr(output, "beam_indices", None)
        # BLIP generates with a decoder of its own, which alone knows its vocabulary.
        decoder = getattr(self._model, "text_decoder", self._model)
        logs_NT = decoder.compute_transition_scores(
            output.sequences, output.scores, beams, normalize_logits=True
        )
        tokens_NT = output.sequences[:, -logs_NT.shape[1] :]
        ends_NT = torch.isin(tokens_NT, torch.tensor(self._end_ids(), device=tokens_NT.device))
        # Up to the first end, that one included; what follows is padding, likely or not.
        said_NT = ends_NT.cumsum(1) - ends_NT.long() == 0
        sums = torch.where(said_NT, logs_NT, 0.0).sum(1) / said_NT.sum(1)
        scores: list[float] = sums.float().tolist()
        return scores

    def _end_ids(self) -> list[int]:
        tokenizer = self._tokenizer
        ends = self._model.generation_config.eos_token_id
        ids = [*(ends if isinstance(ends, list) else [ends])]
        return [i for i in (*ids, tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None]

    def _without_prompt(self, text: str) -> str:
        plain, prompt = text.strip(), self._config.prompt.strip().lower()
        return plain[len(prompt) :].strip() if plain.lower().startswith(prompt) else plain


def _processors(auto: Any, folder: Path, local: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the processor of images (and a prompt), and the tokenizer.

    A VisionEncoderDecoder's folder has no combined processor; AutoProcessor then returns either.
    """
    processor = auto.AutoProcessor.from_pretrained(folder, **local)
    if hasattr(processor, "image_processor"):
        return processor, processor.tokenizer
    images = auto.AutoImageProcessor.from_pretrained(folder, **local)
    return images, auto.AutoTokenizer.from_pretrained(folder, **local)


def _transformers_version() -> str:
    return version("transformers")


def _model_type(folder: Path) -> str:
    import json

    try:
        model_type = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder} is not the folder of a model: {type(error).__name__}",
            expected="a local folder with config.json, *.safetensors, and the processor's files",
            action="save the model there with save_pretrained",
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(
            f"{folder} holds no safetensors",
            expected="weights in *.safetensors: pickles can run code when they are read",
            action="save the model again with save_pretrained(..., safe_serialization=True)",
        )
    return str(model_type)
