"""CoCa as a captioner: a clipmill checkpoint, or weights in open_clip's layout."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clipmill.config import canonical_json, digest_json, sha256_file
from clipmill.data.captioners.base import CaptionInput, CaptionOutput, make_output, sample_seed
from clipmill.data.captioners.config import MIN_TOKENS, GenerateConfig
from clipmill.data.captioners.public import OpenClipCoca
from clipmill.errors import ArtifactError, ConfigError
from clipmill.lineage import Parent
from clipmill.models.checkpoint import load_checkpoint, read_metadata
from clipmill.models.config import CocaConfig, VisionConfig
from clipmill.models.preprocess import tower_image
from clipmill.models.weights.files import check_fit, read_tensors
from clipmill.models.weights.open_clip_layout import image_config

if TYPE_CHECKING:
    from clipmill.data.captioners.coca_generation import CaptionGenerator


class CocaCaptioner:
    """Captioner by a CoCa: the URI of a clipmill checkpoint, or weights in open_clip's layout.

    Raises NotFoundError, ArtifactError, and ConfigError for a length that the model can't have.
    """

    needs_images = True
    checkpoint_outputs = False

    def __init__(
        self, source: str | OpenClipCoca, config: GenerateConfig, *, num_threads: int = 0
    ) -> None:
        self._config = config
        self._num_threads = num_threads
        self._generator: CaptionGenerator | None = None
        self._source = source
        self._vision: VisionConfig
        self.parents: tuple[Parent, ...]
        if isinstance(source, OpenClipCoca):
            self._vision = _open_clip_images(source)
            longest = source.config["text_cfg"]["context_length"]
            weights = [source.config, source.preprocessing, sha256_file(source.path)]
            parent = Parent(role="captioner", uri=source.source, digest=digest_json(weights))
        else:
            metadata = read_metadata(source)
            if metadata.kind != "coca":
                raise ArtifactError(
                    f"{source} is a checkpoint of kind {metadata.kind!r}",
                    expected="a CoCa checkpoint",
                    action="give the URI of a captioner",
                )
            clip = CocaConfig.from_json(metadata.architecture).clip
            self._vision = clip.vision
            longest = clip.text.context_length
            parent = metadata.as_parent("captioner")
        _check_length(config, longest)
        self.parents = (parent,)
        self.identity = digest_json([parent.digest, config.digest])
        self.detail: Mapping[str, str] = {
            "model": source.source if isinstance(source, OpenClipCoca) else source,
            "prompt": "",
            "sampling": canonical_json(config.to_json()),
            "seed": str(config.seed),
        }

    @property
    def is_public(self) -> bool:
        """True if another library published the weights."""
        return isinstance(self._source, OpenClipCoca)

    def caption(self, inputs: Sequence[CaptionInput]) -> Iterator[tuple[int, CaptionOutput]]:
        """Caption all samples in one batch, scored by the same model."""
        import numpy as np

        generator = self._generator = self._generator or self._load()
        images = [i.image for i in inputs if i.image is not None]
        assert len(images) == len(inputs)
        pixels_BHW3 = np.stack([tower_image(image, self._vision) for image in images])
        seeds = [sample_seed(self._config.seed, i.uid) for i in inputs]
        for index, scored in enumerate(generator.generate(pixels_BHW3, seeds)):
            yield index, make_output([text for text, _ in scored], [score for _, score in scored])

    def close(self) -> None:
        """Release the model."""
        self._generator = None

    def _load(self) -> "CaptionGenerator":
        from clipmill.data.captioners.coca_generation import CaptionGenerator
        from clipmill.models.encoders import Normalize
        from clipmill.models.execution import set_num_threads
        from clipmill.models.tokenizer import Tokenizer

        set_num_threads(self._num_threads)
        if isinstance(self._source, OpenClipCoca):
            coca, context_length = _build_open_clip(self._source)
            _check_length(self._config, context_length)
            tokenizer = Tokenizer(context_length=context_length)
        else:
            metadata, tensors = load_checkpoint(self._source)
            architecture = CocaConfig.from_json(metadata.architecture)
            from clipmill.models.coca import build_coca

            coca = build_coca(architecture)
            coca.load_state_dict(tensors)
            tokenizer = Tokenizer.from_config(architecture.clip.text, is_padded=True)
        return CaptionGenerator(
            coca, tokenizer, Normalize(self._vision.mean, self._vision.std), self._config
        )


def _open_clip_images(source: OpenClipCoca) -> VisionConfig:
    """Return the image preprocessing of the weights."""
    default, given = VisionConfig(), source.preprocessing
    images = image_config(
        source.config["vision_cfg"].get("image_size", default.image_size),
        given.get("mean", default.mean),
        given.get("std", default.std),
        given.get("interpolation", "bicubic"),
        is_squashed=given.get("resize_mode", "shortest") == "squash",
    )
    return replace(default, **images)


def _build_open_clip(source: OpenClipCoca) -> tuple[Any, int]:
    """Return the model with its weights, and the context length of its training."""
    from open_clip.coca_model import CoCa

    tensors = read_tensors(source.path)
    config = {k: v for k, v in source.config.items() if k != "custom_text"}
    # MobileCLIP2's CoCas differ in this alone. The text tower has a class token after the context.
    positions = tensors.get("text.positional_embedding")
    context_length: int = config["text_cfg"]["context_length"]
    if positions is not None:
        context_length = len(positions) - 1
        for name in ("text_cfg", "multimodal_cfg"):
            config[name] = {**config[name], "context_length": context_length}
    coca = CoCa(**config)
    check_fit(str(source.path), tensors, coca.state_dict())
    coca.load_state_dict(tensors)
    return coca, context_length


def _check_length(config: GenerateConfig, longest: int) -> None:
    if not MIN_TOKENS < config.max_tokens <= longest:
        raise ConfigError(
            f"max_tokens was {config.max_tokens}",
            expected=f"{MIN_TOKENS + 1} to {longest}, this captioner's longest text",
            action="set generate.max_tokens",
        )
