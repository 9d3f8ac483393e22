"""CoCa as a captioner: a checkpoint of ours, or one of open_clip's with weights from a file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipmill.config import Config
from clipmill.data.captioners.contract import CaptionInput, CaptionOutput, output_of, sample_seed
from clipmill.digest import canonical_json, digest_json, sha256_file
from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.models.center_resize import center_resize
from clipmill.models.checkpoint import load_checkpoint, read_card
from clipmill.models.towers import CocaConfig, build_coca
from clipmill.storage import Parent

if TYPE_CHECKING:
    from clipmill.data.captioners.coca_decoding import Decoder

# open_clip's ``generate`` lets no caption end before this many.
MIN_TOKENS = 5
_OPEN_CLIP = re.compile(r"(coca_[A-Za-z0-9_-]+)@(.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig(Config):
    """How captions are drawn from a CoCa, in the words of open_clip's ``generate``."""

    method: Literal["beam_search", "top_p", "top_k"] = "beam_search"
    """Deterministic beams, as open_clip 3.3 searches, or sampling."""
    num_captions: int = 1
    """Captions drawn a sample; equal ones count once. Beam search gives one."""
    num_beams: int = 6
    """Beams of a search."""
    num_beam_groups: int = 3
    """Groups that the beams are divided among. open_clip searches each alike, so the search is that
    of ``num_beams / num_beam_groups`` beams."""
    top_p: float = 0.1
    """Sampling draws from the likeliest tokens whose probabilities add up to this."""
    top_k: int = 1
    """Sampling draws from this many of the likeliest tokens; 1 is greedy."""
    temperature: float = 1.0
    """Sampling divides logits by this, after the choice of tokens."""
    max_tokens: int = 40
    """Longest caption, tokens, start and end included."""
    seed: int = 0
    """Seed of sampling, with the sample's uid."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; ``auto`` is bf16 on a GPU and fp32 elsewhere."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing (ConfigError)."""
        several = self.method != "beam_search" and (self.method, self.top_k) != ("top_k", 1)
        for name, fits, expected in (
            ("num_captions", self.num_captions >= 1, "at least 1"),
            (
                "num_captions",
                self.num_captions == 1 or several,
                "1: neither beam search nor greedy decoding gives several",
            ),
            ("num_beams", self.num_beams >= 2, "at least 2; one beam is top_k with top_k=1"),
            (
                "num_beam_groups",
                self.num_beam_groups >= 1 and self.num_beams % self.num_beam_groups == 0,
                f"a divisor of num_beams, which is {self.num_beams}",
            ),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 1, "at least 1"),
            ("temperature", self.temperature > 0, "above 0"),
        ):
            if not fits:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=expected,
                    action=f"give {name} such a value",
                )


class CocaCaptioner:
    """A CoCa, at ``uri``: a checkpoint of ours, or ``NAME@FILE`` for one of open_clip's.

    NAME is that of an open_clip model, such as ``coca_ViT-L-14``; FILE holds its weights, as
    safetensors or as what ``torch.load`` reads with ``weights_only``. Raises NotFoundError,
    ArtifactError, and ConfigError for a length that the model can't have.
    """

    looks_at_images = True
    is_costly = False

    def __init__(self, uri: str, config: GenerateConfig, *, num_threads: int = 0) -> None:
        self._config = config
        self._num_threads = num_threads
        self._decoder: Decoder | None = None
        self._open_clip = _OPEN_CLIP.fullmatch(uri)
        self.parents: tuple[Parent, ...]
        if self._open_clip:
            self.parents = (_open_clip_parent(*self._open_clip.groups()),)
            model = self._open_clip[1]
        else:
            card = read_card(uri)
            if card.kind != "coca":
                raise ArtifactError(
                    f"{uri} is a checkpoint of kind {card.kind!r}",
                    expected="a CoCa checkpoint",
                    action="give the URI of a captioner",
                )
            longest = CocaConfig.from_json(card.architecture).clip.text.context_length
            _check_length(config, longest)
            self.parents = (card.as_parent("captioner"),)
            model = uri
        self.identity = digest_json([self.parents[0].digest, config.digest])
        self.detail: Mapping[str, str] = {
            "model": model,
            "prompt": "",
            "sampling": canonical_json(config.to_json()),
            "seed": str(config.seed),
        }

    def caption(self, inputs: Sequence[CaptionInput]) -> Iterator[tuple[int, CaptionOutput]]:
        """Captions of the whole batch at once, scored by the same model."""
        import numpy as np

        decoder = self._decoder = self._decoder or self._load()
        images = [i.image for i in inputs if i.image is not None]
        assert len(images) == len(inputs)
        pixels_BHW3 = np.stack([center_resize(image, decoder.image_size) for image in images])
        seeds = [sample_seed(self._config.seed, i.uid) for i in inputs]
        for index, found in enumerate(decoder.decode(pixels_BHW3, seeds)):
            yield index, output_of([text for text, _ in found], [score for _, score in found])

    def close(self) -> None:
        """Let go of the model."""
        self._decoder = None

    def _load(self) -> "Decoder":

        from clipmill.data.captioners.coca_decoding import Decoder
        from clipmill.models.cpu_threads import use_threads
        from clipmill.models.normalization import Normalize

        use_threads(self._num_threads)
        if self._open_clip:
            return self._load_open_clip(*self._open_clip.groups())
        card, tensors = load_checkpoint(self.parents[0].uri)
        architecture = CocaConfig.from_json(card.architecture)
        coca = build_coca(architecture)
        coca.load_state_dict(tensors)
        return Decoder(
            coca,
            architecture.clip.text.tokenizer(is_padded=True),
            Normalize(),
            self._config,
            image_size=architecture.clip.vision.image_size,
        )

    def _load_open_clip(self, name: str, file: str) -> "Decoder":
        import open_clip

        from clipmill.data.captioners.coca_decoding import Decoder
        from clipmill.models.normalization import Normalize
        from clipmill.models.tokenizer import Tokenizer

        architecture = open_clip.get_model_config(name)
        if architecture is None or "hf_model_name" in architecture["text_cfg"]:
            raise ConfigError(
                f"{name} is not a CoCa that can be loaded by name",
                expected=f"one of {', '.join(_known_cocas())}",
                action="correct the name before the @",
            )
        _check_length(self._config, architecture["text_cfg"]["context_length"])
        coca = open_clip.create_model(name, load_weights=False)
        try:
            open_clip.load_checkpoint(coca, file, weights_only=True)
        except Exception as error:  # a foreign file makes readers raise anything
            raise ArtifactError(
                f"{file} doesn't hold weights of {name}: {str(error).splitlines()[0]}",
                expected="safetensors, or tensors alone as torch.save writes them",
                action="give the file that belongs to this model",
            ) from error
        return Decoder(
            coca,
            Tokenizer(context_length=architecture["text_cfg"]["context_length"]),
            Normalize(*(tuple(coca.visual.preprocess_cfg[key]) for key in ("mean", "std"))),
            self._config,
            image_size=architecture["vision_cfg"]["image_size"],
        )


def _known_cocas() -> list[str]:
    import open_clip

    def by_name(name: str) -> bool:
        config: dict[str, Any] = open_clip.get_model_config(name)
        return name.startswith("coca_Vi") and "hf_model_name" not in config["text_cfg"]

    return [name for name in open_clip.list_models() if by_name(name)]


def _open_clip_parent(name: str, file: str) -> Parent:
    path = Path(file).absolute()
    try:
        weights = sha256_file(path)
    except OSError as error:
        raise NotFoundError(
            f"{file} can't be read: {error.strerror}",
            expected=f"a file with the weights of {name}",
            action="give the path of such a file after the @",
        ) from error
    return Parent(role="captioner", uri=str(path), digest=digest_json([name, weights]))


def _check_length(config: GenerateConfig, longest: int) -> None:
    if not MIN_TOKENS < config.max_tokens <= longest:
        raise ConfigError(
            f"max_tokens was {config.max_tokens}",
            expected=f"{MIN_TOKENS + 1} to {longest}, this captioner's longest text",
            action="set generate.max_tokens",
        )
