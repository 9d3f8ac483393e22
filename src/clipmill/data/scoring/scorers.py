"""Scorers of images and captions: sizes, hashes, lengths, languages, concepts and CLIP scores.

A layer of scores has a column per measure of the image, or a column per *caption kind*:
``real`` holds one value per row, and a captions layer's name holds a list per row, one value for
each of the layer's captions.

The CLIP score is the cosine similarity of an image's and a caption's embeddings (Hessel et al.
2021) as DataComp stores it, without CLIPScore's factor of 2.5 and without clipping at 0.

Shapes: B images, C captions, D embedding width.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from clipmill.config import Config, sha256_bytes
from clipmill.errors import ConfigError
from clipmill.lineage import Parent
from clipmill.models.clip import clip_parent
from clipmill.models.preprocess import tower_image
from clipmill.models.weights.addresses import FORMS
from clipmill.storage import read_bytes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Captions:
    """All captions of one kind in some rows, one after the other."""

    texts: Sequence[str]
    """The captions of row 0, then those of row 1, ..."""
    counts: Sequence[int] | None
    """Number of captions of each row; None where each has one, as the real ones do."""

    def column(self, values: pa.Array) -> pa.Array:
        """``values``, one a caption, as a layer's column: a value, or a list, a row."""
        if self.counts is None:
            return values
        offsets = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    def lists(self) -> list[Sequence[str]]:
        """Return the captions of each row."""
        if self.counts is None:
            return [[text] for text in self.texts]
        ends = np.cumsum([0, *self.counts]).tolist()
        return [self.texts[start:end] for start, end in pairwise(ends)]

    def slice(self, start: int, stop: int) -> "Captions":
        """The captions of rows ``start`` to ``stop`` (exclusive)."""
        if self.counts is None:
            return Captions(self.texts[start:stop], None)
        before = sum(self.counts[:start])
        counts = self.counts[start:stop]
        return Captions(self.texts[before : before + sum(counts)], counts)


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Consecutive rows of a shard, read once for all scorers."""

    num_rows: int
    data: Sequence[bytes] | None
    """The image files, if any scorer asks for them."""
    images: Sequence[Image.Image | None] | None
    """The images, upright RGB, if any scorer asks for them; None where one doesn't decode."""
    captions: Mapping[str, Captions]
    """By caption kind, those that are asked for."""
    original_sizes: Sequence[tuple[int, int] | None] | None = None
    """Width and height before the source resized the image, pixels; None where it names none."""
    uids: Sequence[str] = ()
    layers: Mapping[str, pa.Table] = field(default_factory=dict)
    """Rows of the layers that scorers ask for, by the layer's name."""


class Scorer(Protocol):
    """Measures rows."""

    needs_images: bool
    """True if it needs images."""
    needs_captions: bool
    """True if it has a column per caption kind."""
    layers: tuple[str, ...]
    """Full names of the layers that it reads."""
    parents: tuple[Parent, ...]
    """Models and lists that it measures with, as the layer's parents."""
    detail: dict[str, str]
    """A few words for people, shown in the layer's lineage."""

    def score(self, rows: RowBatch) -> dict[str, pa.Array]:
        """The layer's columns but ``uid``, one value a row."""
        ...


CONTENT_BYTES = 16
"""Bytes kept of the SHA-256 of an image file; among 10^10 files two agree by chance once in 10^18
such sets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageScoreConfig(Config):
    """Measures of the image; there is nothing to choose."""


class ImageScorer:
    """Columns ``width``, ``height`` (pixels, upright), ``aspect`` (longer side by shorter): those
    before the source resized the image, where it names them (img2dataset does);
    ``perceptual_hash`` (uint64) and ``content_hash`` (leading bytes of the file's SHA-256).

    All but the last are null where the image doesn't decode.
    """  # noqa: D205  # a list of columns has no shorter form

    needs_images = True
    needs_captions = False
    layers: tuple[str, ...] = ()
    parents: tuple[Parent, ...] = ()

    def __init__(self, config: ImageScoreConfig) -> None:
        del config
        self.detail = {"measures": "size, aspect, perceptual hash, content hash"}

    def score(self, rows: RowBatch) -> dict[str, pa.Array]:
        """The columns above."""
        assert rows.images is not None
        assert rows.data is not None
        originals = rows.original_sizes or [None] * len(rows.images)
        sizes = [
            (original or image.size) if image else (0, 0)
            for image, original in zip(rows.images, originals, strict=True)
        ]
        width, height = np.array(sizes, np.int32).reshape(-1, 2).T
        is_missing = width == 0
        with np.errstate(invalid="ignore"):
            aspect = (np.maximum(width, height) / np.minimum(width, height)).astype(np.float32)
        hashes = np.zeros(len(sizes), np.uint64)
        small = [small_gray(image) for image in rows.images if image]
        if small:
            hashes[~is_missing] = perceptual_hashes(small)
        content = [hashlib.sha256(data).digest()[:CONTENT_BYTES] for data in rows.data]
        return {
            "width": pa.array(width, mask=is_missing),
            "height": pa.array(height, mask=is_missing),
            "aspect": pa.array(aspect, mask=is_missing),
            "perceptual_hash": pa.array(hashes, mask=is_missing),
            "content_hash": pa.array(content, pa.binary(CONTENT_BYTES)),
        }


SIDE, LOW = 32, 8

# Coefficients of a flat image are rounding noise, which mustn't become bits.
_DECIMALS = 6


def small_gray(image: Image.Image) -> NDArray[np.uint8]:
    """The image as (S, S) gray values, shrunk by Lanczos."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def perceptual_hashes(small_BSS: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint64]:
    """Hashes (B,) of small gray images: which low frequencies lie above their median.

    The first bit is the most significant one, and rows come before columns, as in ImageHash.
    """
    pixels_BSS = np.stack(small_BSS).astype(np.float64)
    basis_LS = _dct_basis()
    low_BLL = np.round(basis_LS @ pixels_BSS @ basis_LS.T, _DECIMALS)
    low_BK = low_BLL.reshape(len(low_BLL), LOW * LOW)
    bits_BK = low_BK > np.median(low_BK, axis=1, keepdims=True)
    hashes: NDArray[np.uint64] = np.packbits(bits_BK, axis=1).view(">u8")[:, 0].astype(np.uint64)
    return hashes


@cache
def _dct_basis() -> NDArray[np.float64]:
    """The first L rows of the unnormalized DCT-II of length S."""
    frequency_L1 = np.arange(LOW)[:, None]
    place_S = np.arange(SIDE)
    basis_LS: NDArray[np.float64] = 2 * np.cos(
        np.pi * frequency_L1 * (2 * place_S + 1) / (2 * SIDE)
    )
    return basis_LS


# Least probability of a language, in that which each gets for a text without any feature.
_LEAST_RATIO = 2.0

# Languages of other scripts, which no English is taken for, and the most usual of Latin script.
LANGUAGES = (
    "ar", "bn", "cs", "de", "el", "en", "es", "fa", "fr", "he", "hi", "id", "it", "ja", "ka", "ko",
    "nl", "pl", "pt", "ru", "sv", "ta", "te", "th", "tr", "uk", "ur", "vi", "zh", "zxx",
)  # fmt: skip

_TYPE = pa.struct(
    {
        "words": pa.int32(),
        "characters": pa.int32(),
        "language": pa.string(),
        "confidence": pa.float32(),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextScoreConfig(Config):
    """Measures of the captions."""

    language: bool = True
    """Detect the language, which takes nearly all of the time; else it is null."""
    languages: tuple[str, ...] = LANGUAGES
    """Languages that are told apart; empty for all that py3langid knows. Of 50 short English
    alt-texts the default recognizes 45 and all 97 recognize 39; of 52 in 20 other languages neither
    takes any for English."""
    longest: int = 1000
    """Characters of a caption that are used to detect its language."""


class TextScorer:
    """A column a caption kind, of structs: ``words`` (divided by white space, as DataComp counts
    them), ``characters`` (code points), ``language`` (ISO 639 code, by py3langid) and
    ``confidence`` (its probability, 0..1).
    """  # noqa: D205  # a list of columns has no shorter form

    needs_images = False
    needs_captions = True
    layers: tuple[str, ...] = ()
    parents: tuple[Parent, ...] = ()

    def __init__(self, config: TextScoreConfig) -> None:
        self._config = config
        self.detail = {"measures": "words, characters" + ", language" * config.language}

    def score(self, rows: RowBatch) -> dict[str, pa.Array]:
        """The columns above."""
        return {kind: c.column(self._measure(c)) for kind, c in rows.captions.items()}

    def _measure(self, captions: Captions) -> pa.Array:
        texts = captions.texts
        detected = [self._detect_language(text) for text in texts]
        columns = [
            pa.array([len(text.split()) for text in texts], pa.int32()),
            pa.array([len(text) for text in texts], pa.int32()),
            pa.array([language for language, _ in detected], pa.string()),
            pa.array([confidence for _, confidence in detected], pa.float32()),
        ]
        return pa.StructArray.from_arrays(columns, fields=list(_TYPE))

    def _detect_language(self, text: str) -> tuple[str | None, float | None]:
        if not self._config.language:
            return None, None
        return detect_language(text[: self._config.longest], self._config.languages)


def detect_language(text: str, languages: tuple[str, ...] = LANGUAGES) -> tuple[str, float]:
    """Return the ISO 639 code of a text's language, and its probability by py3langid.

    ``und`` where the text is too short or isn't language, such as a file name. Raises ConfigError
    for a language that py3langid doesn't know.
    """
    return _identifier(languages)(text)


@cache
def _identifier(languages: tuple[str, ...]) -> Callable[[str], tuple[str, float]]:
    # Its model lies in its wheel, and takes some seconds to load.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if languages:
        try:
            identifier.set_languages(list(languages))
        except ValueError as error:
            raise ConfigError(
                f"text.languages was {', '.join(languages)}: {error}",
                expected="ISO 639-1 codes of languages that py3langid knows",
                action="correct --set text.languages",
            ) from error
    identifier.min_confidence = _LEAST_RATIO / len(identifier.nb_classes)
    classify: Callable[[str], tuple[str, float]] = identifier.classify
    return classify


_SET_APART = str.maketrans({mark: f" {mark} " for mark in ",.;:?!`"} | dict.fromkeys("\t\n\r", " "))


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptScoreConfig(Config):
    """Concepts that captions are matched with."""

    concepts: str = ""
    """URI of the list: UTF-8 text with a concept a line, or a JSON array of strings."""
    ignore_case: bool = False
    """Match capital letters with small ones; MetaCLIP's published code doesn't."""


class ConceptScorer:
    """A column a caption kind: the list of numbers of the concepts that the caption names.

    Numbers count the entries of the list from 0, and ascend.
    """

    needs_images = False
    needs_captions = True
    layers: tuple[str, ...] = ()

    def __init__(self, config: ConceptScoreConfig) -> None:
        if not config.concepts:
            raise ConfigError(
                "concepts.concepts was empty",
                expected="the URI of a list of concepts, one a line",
                action="give it with --set concepts.concepts=URI",
            )
        data = read_bytes(config.concepts)
        concepts = parse_concepts(data, config.concepts)
        parent = Parent(role="concepts", uri=config.concepts, digest=sha256_bytes(data))
        self.parents: tuple[Parent, ...] = (parent,)
        self.detail = {"concepts": str(len(concepts))}
        self._matcher = ConceptMatcher(concepts, ignore_case=config.ignore_case)

    def score(self, rows: RowBatch) -> dict[str, pa.Array]:
        """The columns above."""
        return {kind: c.column(self._match(c)) for kind, c in rows.captions.items()}

    def _match(self, captions: Captions) -> pa.Array:
        matches = [self._matcher(text) for text in captions.texts]
        offsets = np.cumsum([0, *map(len, matches)]).astype(np.int32)
        numbers = pa.array([number for row in matches for number in row], pa.int32())
        return pa.ListArray.from_arrays(pa.array(offsets), numbers)


class ConceptMatcher:
    """Maps a text to the numbers of the concepts that stand in it, ascending."""

    def __init__(self, concepts: Sequence[str], *, ignore_case: bool = False) -> None:
        self._fold = str.casefold if ignore_case else str
        self._numbers: dict[str, list[int]] = {}
        # By first word, how many words the entries have: most words begin none.
        self._lengths: dict[str, list[int]] = {}
        for number, concept in enumerate(concepts):
            entry = self._fold(concept)
            self._numbers.setdefault(entry, []).append(number)
            words = entry.split(" ")
            lengths = self._lengths.setdefault(words[0], [])
            if len(words) not in lengths:
                lengths.append(len(words))

    def __call__(self, text: str) -> list[int]:
        """The concepts that stand in ``text`` between spaces, once its punctuation has some."""
        # An entry with a space on each side is a run of whole words: cutting at each single space
        # and looking runs up in a dict finds what a search for substrings would.
        words = self._fold(f" {text} ").translate(_SET_APART).split(" ")[1:-1]
        matches: set[int] = set()
        for start, word in enumerate(words):
            for length in self._lengths.get(word, ()):
                matches.update(self._numbers.get(" ".join(words[start : start + length]), ()))
        return sorted(matches)


def parse_concepts(data: bytes, uri: str) -> list[str]:
    """The entries of a list, as they stand; raises ConfigError if it isn't one."""
    try:
        text = data.decode()
        value: object = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except ValueError as error:
        raise _not_a_list_error(uri, str(error)) from error
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise _not_a_list_error(uri, "not an array of strings")
    concepts = [entry.strip() for entry in value]
    if not concepts or not all(concepts):
        raise _not_a_list_error(uri, "a blank entry" if concepts else "no entry")
    return concepts


def _not_a_list_error(uri: str, trouble: str) -> ConfigError:
    return ConfigError(
        f"{uri} isn't a list of concepts: {trouble}",
        expected="UTF-8 text with a concept a line, or a JSON array of strings",
        action="correct the list, or give another one",
    )


_NUM_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScoreConfig(Config):
    """CLIP that scores, and its batch size and precision."""

    model: str = ""
    """Address of a CLIP with both towers."""
    weights: str = ""
    """Always empty: the weights are part of the address (0.1 had them here)."""
    seed: int = 0
    """Seed of random weights."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the towers; similarities are always taken in fp32."""
    batch_size: int = 256
    """Most captions encoded together."""
    num_threads: int = 0
    """CPU threads; 0: PyTorch's choice, within the container's limit."""

    def __post_init__(self) -> None:
        """Refuse weights apart from the model (ConfigError)."""
        if self.weights:
            name = self.model.removeprefix("open_clip:")
            raise ConfigError(
                f"clip.weights was {self.weights!r}",
                expected="nothing: the weights are part of clip.model",
                action=f"give the model as file:{self.weights}#open_clip/{name or 'NAME'}",
            )


class ClipImageScorer:
    """Base of scorers that embed images by a CLIP, which is loaded for the first of them."""

    needs_images = True
    layers: tuple[str, ...] = ()

    def __init__(self, config: ClipScoreConfig, role: str, name: str = "clip") -> None:
        """``role`` is the CLIP's among the layer's parents, ``name`` that of the config."""
        self.parents: tuple[Parent, ...] = (scoring_clip_parent(config, role, name),)
        self.detail = {"model": config.model, "precision": config.precision}
        self._config = config

    @cached_property
    def _towers(self) -> "ClipTowers":
        return ClipTowers(self._config)


class ClipScorer(ClipImageScorer):
    """A column a caption kind of float32; null where the image doesn't decode."""

    needs_captions = True

    def __init__(self, config: ClipScoreConfig) -> None:
        super().__init__(config, "judge")

    def score(self, rows: RowBatch) -> dict[str, pa.Array]:
        """The columns above."""
        assert rows.images is not None
        images_BD, has_image = self._towers.embed_rows(rows.images)
        return {
            kind: captions.column(self._similarity(images_BD, has_image, captions))
            for kind, captions in rows.captions.items()
        }

    def _similarity(
        self, images_BD: NDArray[np.float32], has_image: NDArray[np.bool_], captions: Captions
    ) -> pa.Array:
        counts = 1 if captions.counts is None else np.array(captions.counts, np.int64)
        row_C = np.repeat(np.arange(len(images_BD)), counts)
        valid_C = np.flatnonzero(has_image[row_C])
        scores = np.zeros(len(row_C), np.float32)
        for start in range(0, len(valid_C), self._config.batch_size):
            part = valid_C[start : start + self._config.batch_size]
            texts_CD = self._towers.encode_texts([captions.texts[c] for c in part])
            scores[part] = np.einsum("cd,cd->c", images_BD[row_C[part]], texts_CD)
        return pa.array(scores, mask=~has_image[row_C])


class ClipTowers:
    """A CLIP on this machine's device; embeddings come back as unit vectors in fp32."""

    def __init__(self, config: ClipScoreConfig) -> None:
        import torch

        from clipmill.models.clip import load_clip
        from clipmill.models.encoders import Normalize
        from clipmill.models.execution import set_num_threads

        set_num_threads(config.num_threads)
        self.batch_size = config.batch_size
        """Most captions to be encoded together."""
        clip = load_clip(config.model, seed=config.seed)
        self._vision, self._tokenize = clip.vision, clip.tokenize
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._type = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            config.precision
        ]
        self._model = clip.model.to(self._device)
        self._normalize = Normalize(clip.vision.mean, clip.vision.std).to(self._device)
        self._pool = ThreadPoolExecutor(_NUM_THREADS)

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embeddings (B, D)."""
        import torch

        resized = list(self._pool.map(self._resized, images))
        pixels_B3HW = torch.from_numpy(np.stack(resized)).to(self._device).permute(0, 3, 1, 2)
        return self._encode(self._model.encode_image, self._normalize(pixels_B3HW.float() / 255))

    @cached_property
    def embed_dim(self) -> int:
        """Width of the embeddings."""
        return self.encode_images([Image.new("RGB", (8, 8))]).shape[1]

    def embed_rows(
        self, images: Sequence[Image.Image | None]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Embeddings (B, D), 0 where there is no image, and where there is one."""
        has_image = np.array([image is not None for image in images], bool)
        images_BD = np.zeros((len(images), self.embed_dim), np.float32)
        if has_image.any():
            images_BD[has_image] = self.encode_images([image for image in images if image])
        return images_BD, has_image

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Embeddings (C, D)."""
        return self._encode(self._model.encode_text, self._tokenize(texts))

    def _resized(self, image: Image.Image) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = tower_image(image, self._vision)
        return pixels

    def _encode(self, tower: "Callable[[Tensor], Tensor]", values: "Tensor") -> NDArray[np.float32]:
        import torch
        from torch.nn import functional as F

        autocast = torch.autocast(
            self._device.type, self._type, enabled=self._type is not torch.float32
        )
        with torch.inference_mode(), autocast:
            embeddings = tower(values.to(self._device))
        unit: NDArray[np.float32] = F.normalize(embeddings.float(), dim=-1).cpu().numpy()
        return unit


def scoring_clip_parent(config: ClipScoreConfig, role: str, name: str = "clip") -> Parent:
    """The CLIP that judges, by digest; ``name`` is that of the config.

    Raises:
        ConfigError, NotFoundError, ArtifactError: there is no such CLIP.
    """
    if not config.model:
        raise ConfigError(
            f"{name}.model was empty",
            expected=f"the address of a CLIP: {FORMS}",
            action=f"give it with --model, or --set {name}.model=open_clip:ViT-L-14/openai",
        )
    return clip_parent(config.model, role, seed=config.seed)
