"""Image-to-text models of Hugging Face transformers (BLIP, GIT, ...), from a local folder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipmill.config import canonical_json, digest_json, sha256_file
from clipmill.data.captioners.base import CaptionInput, CaptionOutput, make_output, sample_seed
from clipmill.data.captioners.config import HuggingFaceConfig
from clipmill.data.captioners.public import MODEL_FILES
from clipmill.errors import ArtifactError, ConfigError
from clipmill.lineage import Parent


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
            self._model = auto.AutoModelForImageTextToText.from_pretrained(
                folder, use_safetensors=True, torch_dtype=self._dtype, **local
            )
        except Exception as error:  # a foreign folder makes transformers raise anything
            raise ArtifactError(
                f"{folder} can't be loaded: {str(error).splitlines()[0]}",
                expected="an image-to-text model with its processor, saved by save_pretrained",
                action="pass the complete folder of such a model",
            ) from error
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
