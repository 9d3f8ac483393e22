"""Zero-shot evaluation of a CLIP: classification, and retrieval between images and texts.

A class is the mean embedding of sentences about it (Radford et al. 2021, section 3.1). Images are
ImageNet's folder layout or WebDataset tars for classification, a clipmill dataset or any source of
captioned images for retrieval. Shapes: B images, C classes, D embedding width.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.config import Config, digest_json, sha256_bytes
from clipmill.data.captioned_images import iter_captioned_images, open_captioned_images
from clipmill.data.dataset import Dataset
from clipmill.data.labeled.folder import fetch_folder
from clipmill.data.labeled.options import is_hidden, list_files
from clipmill.data.loading.view import in_subset
from clipmill.data.scoring.scorers import ClipScoreConfig, ClipTowers, scoring_clip_parent
from clipmill.data.sources.base import IMAGE_SUFFIXES
from clipmill.data.sources.files import PreadFile, files_digest, matching_files, relative_names
from clipmill.data.sources.webdataset import Member, TruncatedTarError, members
from clipmill.errors import BadSampleError, BadSampleReason, ConfigError, SourceError
from clipmill.images import decode_rgb
from clipmill.lineage import Parent
from clipmill.models.retrieval import ranks, recall_of_ranks
from clipmill.stage_records import ProgressCallback
from clipmill.storage import artifact_uri, join, read_json, write_json
from clipmill.tasks.evaluation import ResultLocation

_BATCH = 64

LABEL_KEY = "cls"
"""WebDataset's name of the member that holds a sample's class."""


IMAGENET = "imagenet"
"""In place of a file of class names: OpenAI's names of ImageNet's classes, by wnid."""


PromptSet = Literal["openai-80", "openai-7", "plain", "given"]
"""OpenAI's 80 sentences for ImageNet, their best 7, a photo alone, or the config's own."""


ConfigT = TypeVar("ConfigT", bound="ClipEvaluationConfig")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipEvaluationConfig(Config):
    """Configuration shared by the evaluations of a CLIP without training."""

    clip: ClipScoreConfig = ClipScoreConfig()
    """The CLIP to evaluate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotConfig(ClipEvaluationConfig):
    """Configuration of zero-shot classification."""

    prompts: PromptSet = "openai-80"
    """Sentences whose mean embedding stands for a class (Radford et al. 2021, section 3.1.4)."""
    templates: tuple[str, ...] = ()
    """Sentences for ``prompts=given``, each with ``{}`` for the class's name."""
    classes: str = ""
    """Text file of class names, ``imagenet``, or empty for the data's own; see
    :func:`class_prompts`."""
    split: str = "val"
    """Subfolder of the split; empty where the classes' folders are at the top."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledImage:
    """An encoded image with its class."""

    data: bytes
    """The image file."""
    label: str
    """Name of the class, or its id as digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassPrompts:
    """Candidate classes, and the labels that mean them."""

    words: tuple[str, ...]
    """Words of each class, which go into the prompts."""
    numbers: Mapping[str, int]
    """Number in ``words`` by a label's name."""
    has_ids: bool
    """True if a label of digits may be a class's number."""

    def number(self, label: str) -> int:
        """Return a label's class.

        Raises:
            SourceError: it is no class, or is one class's name and another's number.
        """
        named = self.numbers.get(label)
        is_id = self.has_ids and label.isascii() and label.isdigit()
        numbered = int(label) if is_id and int(label) < len(self.words) else None
        if named is not None and numbered is not None and named != numbered:
            raise SourceError(
                f"the label {label!r} is the name of class {named} and the number of "
                f"{self.words[numbered]!r}",
                expected="names of classes that aren't numbers of others",
                action="order the list of classes so that number and name agree",
            )
        number = numbered if named is None else named
        if number is None:
            ids = f"a number from 0 to {len(self.words) - 1}, or " if self.has_ids else ""
            raise SourceError(
                f"an image has the class {label!r}",
                expected=f"{ids}one of the classes' names",
                action="give the list of classes that the data was labeled with",
            )
        return number


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledImages:
    """Labeled images in files or tars, read on iteration."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of their ids; empty where only labels are known."""
    files: tuple[tuple[Path, str], ...] = ()
    """Image files of a folder, each with the name of its class."""
    tars: tuple[Path, ...] = ()
    """Tars of images, where the data isn't a folder."""
    parent: Parent
    """The data as a parent in the lineage."""

    def __iter__(self) -> Iterator[LabeledImage | BadSampleError]:
        """Yield every image, or the error of an unusable sample, in order."""
        for path, label in self.files:
            yield LabeledImage(data=path.read_bytes(), label=label)
        for tar in self.tars:
            yield from _samples(tar)


def zero_shot(config: ZeroShotConfig, data: str, store: str, *, report: ProgressCallback) -> str:
    """Evaluate a CLIP on labeled images; return the URI of the evaluation, under ``store``.

    Metrics: ``top1``, ``top5`` and ``mean_per_class`` (mean recall over the classes that have
    images), percent. Unusable images are left out and counted by reason, as ``skipped.REASON``. An
    existing result is returned at once.

    Raises:
        SourceError: there are no images, or a label is no class.
        ConfigError: there is no such model, or a template lacks ``{}``.
    """
    images = open_labeled_images(data, config.split)
    parents = (scoring_clip_parent(config.clip, "model"), images.parent)
    location = result_location(store, "zero-shot", config, parents, config.classes)
    if location.result_exists:
        return location.uri
    prompts = class_prompts(config.classes, images.classes, has_ids=not images.files)
    if not prompts.words:
        raise SourceError(
            f"{data} names no classes",
            expected="classnames.txt next to the tars, or a list of classes",
            action="give one with --classes",
        )
    towers = ClipTowers(config.clip)
    templates = prompt_templates(config.prompts, config.templates)
    classes_CD = class_embeddings(towers, prompts.words, templates)
    scores_BC, labels_B, skipped = _scores(towers, classes_CD, images, prompts, report)
    metrics = {k: 100 * v for k, v in accuracies(scores_BC, labels_B).items()}
    metrics |= {f"skipped.{reason}": float(count) for reason, count in sorted(skipped.items())}
    summary = {"top1": f"{metrics['top1']:.2f} %", "classes": str(len(prompts.words))}
    return location.write_result(metrics, summary)


def class_embeddings(
    towers: ClipTowers, names: Sequence[str], templates: Sequence[str]
) -> NDArray[np.float32]:
    """Return unit vectors (C, D): normalized means over templates of unit embeddings."""
    sentences = [template.replace("{}", name) for name in names for template in templates]
    parts = [
        towers.encode_texts(sentences[start : start + towers.batch_size])
        for start in range(0, len(sentences), towers.batch_size)
    ]
    mean_CD = np.concatenate(parts).reshape(len(names), len(templates), -1).mean(axis=1)
    unit_CD: NDArray[np.float32] = mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True)
    return unit_CD


def accuracies(scores_BC: NDArray[np.float32], labels_B: NDArray[np.int64]) -> dict[str, float]:
    """Compute ``top1``, ``top5`` and ``mean_per_class``, as fractions.

    Ties count as errors: a class as similar as the right one ranks before it. With
    fewer than five classes top5 is 1.
    """
    own_B1 = np.take_along_axis(scores_BC, labels_B[:, None], axis=1)
    rank_B = (scores_BC >= own_B1).sum(axis=1) - 1
    hits = rank_B < 1
    by_class = [hits[labels_B == label].mean() for label in np.unique(labels_B)]
    return {
        "top1": float(hits.mean()),
        "top5": float((rank_B < 5).mean()),
        "mean_per_class": float(np.mean(by_class)),
    }


def _scores(
    towers: ClipTowers,
    classes_CD: NDArray[np.float32],
    images: LabeledImages,
    prompts: ClassPrompts,
    report: ProgressCallback,
) -> tuple[NDArray[np.float32], NDArray[np.int64], Counter[str]]:
    """Return similarities (B, C), labels (B,), and counts of skipped images by reason."""
    total = len(images.files)
    scores: list[NDArray[np.float32]] = []
    labels: list[int] = []
    skipped: Counter[str] = Counter()
    batch: list[Image.Image] = []

    def score_batch() -> None:
        scores.append(towers.encode_images(batch) @ classes_CD.T)
        batch.clear()
        report(len(labels), max(total, len(labels)), "evaluated")

    for sample in images:
        if isinstance(sample, BadSampleError):
            skipped[sample.reason] += 1
            continue
        label = prompts.number(sample.label)
        try:
            batch.append(decode_rgb(sample.data))
        except BadSampleError as error:
            skipped[error.reason] += 1
            continue
        labels.append(label)
        if len(batch) == _BATCH:
            score_batch()
    if batch:
        score_batch()
    if not labels:
        raise SourceError(
            f"none of the data's {sum(skipped.values())} images can be used",
            expected="JPEG, PNG or WebP files with labels",
            action=f"fix the data; skipped were {dict(skipped)}",
        )
    return np.concatenate(scores), np.array(labels, np.int64), skipped


def prompt_templates(prompts: PromptSet, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return sentences with ``{}`` for the class's name.

    Raises:
        ConfigError: none are given, or one has no ``{}``.
    """
    if prompts == "plain":
        return ("a photo of a {}.",)
    if prompts != "given":
        import open_clip

        known = {
            "openai-80": open_clip.OPENAI_IMAGENET_TEMPLATES,
            "openai-7": open_clip.SIMPLE_IMAGENET_TEMPLATES,
        }[prompts]
        return tuple(str(template("{}")) for template in known)
    wrong = [template for template in given if template.count("{}") != 1]
    if wrong or not given:
        raise ConfigError(
            f"templates were {wrong[0]!r}" if wrong else "templates were empty",
            expected="sentences with one {} each, where the class's name goes",
            action="correct templates, or choose prompts=openai-80",
        )
    return given


def class_prompts(classes: str, own: Sequence[str], *, has_ids: bool = True) -> ClassPrompts:
    """Return the candidate classes of data whose own classes are ``own``, by number.

    ``classes`` is one of:

    - Empty: the data's own names, with spaces for underscores.
    - ``imagenet``: the words of the data's wnids, such as ``n02007558``. Only the data's classes
      are candidates, as subsets of ImageNet are evaluated.
    - A text file with lines ``OWN NAME<tab>WORDS`` in any order: likewise.
    - A text file with a line a class: all of its classes are candidates. The data's classes are
      matched by name if all are in it. Otherwise there must be as many lines as classes, which are
      then in the order of the data's ids.

    Raises:
        SourceError: there is no such file, or it doesn't fit the data's classes.
    """
    if not classes:
        return _prompts_in_order([name.replace("_", " ") for name in own], own, has_ids)
    by_name: dict[str, str] = {}
    if classes == IMAGENET:
        lines, wnids = _imagenet_classes()
        by_name = dict(zip(wnids, lines, strict=True))
        if not own:
            # Two names stand for two classes each.
            numbers = {name: i for i, name in enumerate(lines) if lines.count(name) == 1}
            numbers |= {wnid: i for i, wnid in enumerate(wnids)}
            return ClassPrompts(words=tuple(lines), numbers=numbers, has_ids=has_ids)
        if all(name in by_name for name in own):
            return _prompts_in_order([by_name[name] for name in own], own, has_ids)
    else:
        path = Path(classes)
        if not path.is_file():
            raise SourceError(
                f"{classes} is not a file",
                expected=f"a text file with a line a class, or {IMAGENET!r}",
                action="correct the path",
            )
        text = path.read_text("utf-8-sig")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and all("\t" in line for line in lines):
        named = dict(line.split("\t", 1) for line in lines)
        missing = [name for name in own if name not in named]
        if missing:
            raise SourceError(
                f"{classes} names no class {missing[0]!r}",
                expected=f"a line for each of the data's {len(own)} classes",
                action="add the line",
            )
        order = own or list(named)
        return _prompts_in_order([named[name].strip() for name in order], order, has_ids)
    plain = [_plain(line) for line in lines]
    matched = [name for name in own if plain.count(_plain(name)) == 1]
    if len(matched) == len(own):
        numbers = {name: plain.index(_plain(name)) for name in own or lines}
        # Where the data has an order of its own, a number is a place in that.
        is_same = not own or list(numbers.values()) == list(range(len(lines)))
        return ClassPrompts(words=tuple(lines), numbers=numbers, has_ids=has_ids and is_same)
    if len(lines) == len(own):
        return _prompts_in_order(lines, own, has_ids)
    lacking = next(name for name in own if name not in matched and name not in by_name)
    raise SourceError(
        f"{classes} has {len(lines)} names, and the data has {len(own)} classes, of which "
        f"{lacking!r} isn't in the list exactly once",
        expected="as many names as the data has classes, in their order, or a list that has "
        "each of them by name" + (" or wnid" if classes == IMAGENET else ""),
        action="give a file with lines of a class's own name, a tab, and its words",
    )


def _prompts_in_order(words: Sequence[str], own: Sequence[str], has_ids: bool) -> ClassPrompts:
    numbers = {name: number for number, name in enumerate(own)}
    return ClassPrompts(words=tuple(words), numbers=numbers, has_ids=has_ids)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _imagenet_classes() -> tuple[list[str], list[str]]:
    """Return OpenAI's names and the wnids of ImageNet's classes, in the order of the wnids."""
    import open_clip
    from timm.data import ImageNetInfo

    return list(open_clip.IMAGENET_CLASSNAMES), ImageNetInfo("imagenet-1k").label_names()


def open_labeled_images(uri: str, split: str) -> LabeledImages:
    """Open the images at ``uri``: a folder ``[SPLIT/]CLASS/*``, or tars (a folder, glob or file).

    A tar's sample is an image with ``cls``: a class's number, or its name. ``classnames.txt`` in
    the tars' folder, a line a class, gives the classes' names (as clip_benchmark's sets have it).

    Raises:
        SourceError: there are no images.
    """
    path = Path(uri)
    if "*" in uri or _holds_tars(path) or _is_plain_tar(path):
        base, files = matching_files(uri, (".tar",))
        tars = relative_names(base, files)
        digest = files_digest(tars.items(), "metadata", LABEL_KEY)
        names = (path if path.is_dir() else path.parent) / "classnames.txt"
        classes = names.read_text("utf-8").splitlines() if names.is_file() else []
        return LabeledImages(
            classes=tuple(name.strip() for name in classes if name.strip()),
            tars=tuple(tars.values()),
            parent=Parent(role="data", uri=str(path), digest=digest),
        )
    folder, parent = fetch_folder(uri, "data")
    root = folder / split
    folders = [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    classes = sorted(p.name for p in folders if not is_hidden(Path(p.name)))
    image_files = [
        (file, name)
        for name in classes
        for file in list_files(root / name)
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not image_files:
        raise SourceError(
            f"{root} has no CLASS/*.jpg, and {uri} no .tar",
            expected="a folder of images for each class, or WebDataset tars with `cls`",
            action="check the folder, and the split's name (--set split=... ; empty for none)",
        )
    return LabeledImages(classes=tuple(classes), files=tuple(image_files), parent=parent)


def _holds_tars(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.tar"))


def _is_plain_tar(path: Path) -> bool:
    """A tar of samples, rather than a folder packed by ``pack_dir``, which has a digest by it."""
    return path.suffix == ".tar" and path.is_file() and not Path(f"{path}.sha256").exists()


def _samples(tar: Path) -> Iterator[LabeledImage | BadSampleError]:
    file = PreadFile(tar)
    sample: dict[str, Member] = {}
    key = ""
    try:
        for member in members(file, 0, file.size):
            folder, slash, name = member.name.rpartition("/")
            stem, _, kind = name.partition(".")
            if f"{folder}{slash}{stem}" != key and sample:
                yield _read(file, key, sample)
                sample = {}
            key = f"{folder}{slash}{stem}"
            sample.setdefault(kind.lower(), member)
        cut = None
    except TruncatedTarError as error:
        cut = BadSampleError(BadSampleReason.TRUNCATED_TAR, f"{tar}: {error}")
    if sample:
        yield _read(file, key, sample)
    if cut:
        yield cut


def _read(file: PreadFile, key: str, sample: dict[str, Member]) -> LabeledImage | BadSampleError:
    image = next((m for kind, m in sample.items() if f".{kind}" in IMAGE_SUFFIXES), None)
    label = sample.get(LABEL_KEY)
    if image is None or label is None:
        reason = BadSampleReason.MISSING_IMAGE if image is None else BadSampleReason.MISSING_LABEL
        return BadSampleError(reason, f"{file.path}: {key} has {', '.join(sample)}")
    text = file.read(label.offset, label.size).decode("utf-8", "backslashreplace").strip()
    return LabeledImage(data=file.read(image.offset, image.size), label=text)


def result_location(
    store: str, task: str, config: ConfigT, parents: Sequence[Parent], file: str = ""
) -> ResultLocation:
    """Return the location of a result; a local ``file``'s content is part of its digest."""
    # The parent identifies the model, and its speed settings don't change the result.
    clip = replace(config.clip, model="", weights="", seed=0, batch_size=0, num_threads=0)
    settings = replace(config, clip=clip).to_json()
    content = sha256_bytes(Path(file).read_bytes()) if file and Path(file).is_file() else ""
    digest = digest_json([task, settings, content, sorted([p.role, p.digest] for p in parents)])
    return ResultLocation(
        uri=artifact_uri(store, "evaluations", digest[:12]),
        digest=digest,
        task=task,
        recipe=config.to_json(),
        parents=tuple(parents),
    )


_RANKS = "ranks.json"

Pair = tuple[Image.Image, list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig(ClipEvaluationConfig):
    """Configuration of image-text retrieval."""

    captions_per_image: int = 5
    """Maximum captions of an image (5: Karpathy and Fei-Fei's COCO split)."""
    num_images: int = 0
    """Number of images, from the first; 0 for all."""
    outside_fraction: float = 0.0
    """Use only samples outside this fraction of a dataset, as ``view.subset_fraction`` cuts it:
    those that an encoder trained on the fraction hasn't seen. 0 for all."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not 0 <= self.outside_fraction < 1:
            raise ConfigError(
                f"outside_fraction was {self.outside_fraction}",
                expected="0 to below 1",
                action="set it to the view.subset_fraction that the encoder was trained on",
            )


def retrieve(config: RetrievalConfig, data: str, store: str, *, report: ProgressCallback) -> str:
    """Evaluate a CLIP on captioned images; return the URI of the evaluation, under ``store``.

    ``data`` is a dataset's URI, or a source as ``clipmill data shard`` takes it; a COCO captions
    file provides all captions of an image. Metrics: R@1, R@5 and R@10 both ways, percent
    (``image_to_text_r1`` ...), the counts of both, and ``skipped.REASON``; :func:`read_ranks` has
    each query's. An existing result is returned at once.

    Raises:
        SourceError: no pair is usable.
        ConfigError: there is no such model, or ``outside_fraction`` is set without a dataset.
    """
    import torch

    opened = open_captioned_images(data)
    if config.outside_fraction and not isinstance(opened, Dataset):
        raise ConfigError(
            f"outside_fraction was {config.outside_fraction}, but {data} is no dataset",
            expected="the URI of a dataset: a fraction is cut by its samples' ids",
            action="shard the data first, or leave outside_fraction out",
        )
    digest = opened.digest if isinstance(opened, Dataset) else opened.digest("metadata")
    parents = (
        scoring_clip_parent(config.clip, "model"),
        Parent(role="data", uri=opened.uri, digest=digest),
    )
    location = result_location(store, "retrieval", config, parents)
    if location.result_exists:
        return location.uri
    towers = ClipTowers(config.clip)
    skipped: Counter[str] = Counter()
    fraction = config.outside_fraction
    captioned = iter_captioned_images(
        opened, skipped, lambda uid: not (fraction and in_subset(uid, fraction))
    )
    pairs = (
        (image, captions[: config.captions_per_image])
        for image, captions in itertools.islice(captioned, config.num_images or None)
    )
    images, texts, owners = _embed(towers, pairs, report)
    if not images:
        raise SourceError(
            f"{data} has no pair that can be used",
            expected="images with captions",
            action=f"fix the data; skipped were {dict(skipped)}",
        )
    rank_by_direction = ranks(
        torch.from_numpy(np.concatenate(images)),
        torch.from_numpy(np.concatenate(texts)),
        torch.tensor(owners),
    )
    metrics = {k: 100 * v for k, v in recall_of_ranks(rank_by_direction).items()}
    metrics |= {"num_images": float(owners[-1] + 1), "num_captions": float(len(owners))}
    metrics |= {f"skipped.{reason}": float(count) for reason, count in sorted(skipped.items())}
    summary = {
        "image to text": f"R@1 {metrics['image_to_text_r1']:.2f} %",
        "text to image": f"R@1 {metrics['text_to_image_r1']:.2f} %",
    }
    write_json(
        join(location.uri, _RANKS), {way: r.tolist() for way, r in rank_by_direction.items()}
    )
    return location.write_result(metrics, summary)


def read_ranks(uri: str) -> dict[str, list[int]]:
    """Read each query's rank, 0 the best, by direction; queries are in the data's order.

    Raises:
        NotFoundError: the evaluation was written before ranks were kept.
    """
    return {way: list(ranks) for way, ranks in read_json(join(uri, _RANKS)).items()}


def _embed(
    towers: ClipTowers, pairs: Iterator[Pair], report: ProgressCallback
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], list[int]]:
    """Embed images and captions; return both, with the image's index of each caption."""
    images: list[NDArray[np.float32]] = []
    texts: list[NDArray[np.float32]] = []
    owners: list[int] = []
    batch: list[Pair] = []

    def embed() -> None:
        first = owners[-1] + 1 if owners else 0
        images.append(towers.encode_images([image for image, _ in batch]))
        sentences = [text for _, captions in batch for text in captions]
        texts.append(towers.encode_texts(sentences))
        owners.extend(i for i, (_, captions) in enumerate(batch, first) for _ in captions)
        batch.clear()
        report(owners[-1] + 1, owners[-1] + 1, "embedded")

    for pair in pairs:
        batch.append(pair)
        if len(batch) == _BATCH:
            embed()
    if batch:
        embed()
    return images, texts, owners
