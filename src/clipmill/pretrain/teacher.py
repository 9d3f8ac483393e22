"""Teacher layers: embeddings of a dataset by an ensemble of CLIP models, for distillation.

Row of the layer: ``image``, an embedding for each stored augmentation; ``text``, one for the real
caption, then one for each synthetic caption of a layer; ``augmentation``, the numbers that replay
each (:mod:`clipmill.data.transforms.augmentation`; those of DataCompDR's release are replayed by
:mod:`clipmill.data.transforms.torchvision_replay`). An embedding holds the teachers' unit
embeddings concatenated, in fp16 (MobileCLIP, CVPR 2024).
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipmill.config import digest_json
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.layers import (
    LAYER_MANIFEST,
    commit_layer,
    has_layer_shard,
    layer_schema,
    read_layer,
    write_layer_shard,
)
from clipmill.data.loading.dataloader import Replay, augmentation_column
from clipmill.data.loading.view import View
from clipmill.data.shards.read import read_shard
from clipmill.data.transforms.augmentation import (
    ReplayTransform,
    replay,
    sample_augmentation,
)
from clipmill.data.transforms.torchvision_replay import TORCHVISION_AUGMENTATION, TorchvisionReplay
from clipmill.errors import ConfigError
from clipmill.images import decode_rgb
from clipmill.lineage import Parent
from clipmill.models.clip import clip_parent, load_clip
from clipmill.models.encoders import Normalize
from clipmill.pretrain.config import DistillationConfig, TeacherConfig
from clipmill.stage_records import ProgressCallback
from clipmill.storage import join, read_json

# Of DataCompDR's teachers.
_VIT_L_14_WIDTH = 768


def embed_with_teachers(
    config: TeacherConfig, dataset: str, captions: str = "", *, report: ProgressCallback
) -> str:
    """Embed the dataset's images and captions as a layer; return the layer's name.

    ``captions`` names the layer of synthetic captions to embed in addition to the real ones. Shards
    that are complete are skipped.

    Raises:
        ConfigError: there is no teacher, or no such layer of captions.
    """
    opened = Dataset.open(dataset)
    if not config.models:
        raise ConfigError(
            "models was empty",
            expected="at least one teacher",
            action='set models=["open_clip:ViT-L-14/openai"], or other addresses',
        )
    parents = [clip_parent(name, "teacher") for name in config.models]
    if captions:
        if captions not in opened.layers:
            raise ConfigError(
                f"{dataset} has no layer {captions!r}",
                expected=f"one of {', '.join(opened.layers) or 'none: it has no layers'}",
                action="name a layer of captions, or leave it empty",
            )
        digest = opened.layers[captions].digest
        parents.append(Parent(role="captions", uri=opened.layer_uri(captions), digest=digest))
    # The batch size changes nothing.
    recipe = config.to_json() | {"batch_size": 0}
    layer = f"teacher/ensemble-{digest_json([recipe, [p.digest for p in parents]])[:8]}"
    if layer in opened.layers:
        return layer
    report(0, opened.num_samples, "loading the teachers")
    teachers = [load_teacher(name) for name in config.models]
    done = 0
    for index, shard in enumerate(opened.shards):
        if not has_layer_shard(opened, layer, index):
            table = _embed_shard(config, opened, index, captions, teachers)
            write_layer_shard(opened, layer, index, table)
        done += shard.num_samples
        report(done, opened.num_samples, "embedded")
    widths = ",".join(str(teacher.width) for teacher in teachers)
    detail = {"widths": widths, "teachers": ", ".join(config.models)}
    commit_layer(opened, layer, parents=tuple(parents), detail=detail)
    return layer


def _embed_shard(
    config: TeacherConfig,
    dataset: Dataset,
    index: int,
    captions: str,
    teachers: Sequence["Teacher"],
) -> pa.Table:
    with read_shard(dataset, index, cache_folder()) as reader:
        texts = [[reader.caption(row)] for row in range(len(reader))]
        if captions:
            synthetic = read_layer(dataset, captions, index, cache_folder())["captions"]
            texts = [own + more for own, more in zip(texts, synthetic.to_pylist(), strict=True)]
        numbers, images = [], []
        for row in range(len(reader)):
            image = decode_rgb(reader.image(row))
            augmentations = _sample_augmentations(config, reader.uid(row), image)
            numbers.append(augmentations)
            images.append(_embed_image(image, augmentations, teachers, config.batch_size))
        flat = [text for own in texts for text in own]
        pieces = [flat[i : i + config.batch_size] for i in range(0, len(flat), config.batch_size)]
        rows = np.concatenate(
            [np.concatenate([t.embed_texts(piece) for t in teachers], axis=1) for piece in pieces]
        )
        starts = np.cumsum([0, *(len(own) for own in texts)])
        return pa.table(
            {
                "uid": reader.uids,
                "image": _lists(images),
                "text": _lists([rows[a:b] for a, b in itertools.pairwise(starts)]),
                "augmentation": pa.array(numbers, pa.list_(pa.list_(pa.float32()))),
            }
        )


def _sample_augmentations(config: TeacherConfig, uid: str, image: Image.Image) -> list[list[float]]:
    """Return this sample's augmentations; they depend on seed and uid alone."""
    key = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8], "big")
    generator = np.random.default_rng((config.seed, key))
    return [
        # As stored: a replay from the layer must be what the teacher saw.
        np.array(
            sample_augmentation(image.width, image.height, config.augmentation, generator),
            np.float32,
        ).tolist()
        for _ in range(config.num_augmentations)
    ]


def _embed_image(
    image: Image.Image,
    augmentations: Sequence[Sequence[float]],
    teachers: Sequence["Teacher"],
    batch_size: int,
) -> NDArray[Any]:
    """Return embeddings (augmentations, E) of one image."""
    columns = []
    for teacher in teachers:
        batches = [
            augmentations[i : i + batch_size] for i in range(0, len(augmentations), batch_size)
        ]
        columns.append(
            np.concatenate(
                [
                    teacher.embed_images([replay(image, teacher.image_size, n) for n in batch])
                    for batch in batches
                ]
            )
        )
    return np.concatenate(columns, axis=1)


def _lists(rows: Sequence[NDArray[Any]]) -> pa.Array:
    """Return a list of fp16 embeddings per sample."""
    joined = np.concatenate(list(rows)).astype(np.float16)
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(joined.ravel()), joined.shape[1])
    offsets = np.cumsum([0, *(len(r) for r in rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), embeddings)


class Teacher:
    """A CLIP model in evaluation, on the GPU where there is one."""

    def __init__(
        self,
        clip: Any,
        *,
        image_size: int,
        normalize: Normalize,
        tokenize: Callable[[list[str]], Tensor],
    ) -> None:
        self.image_size = image_size
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._clip = clip.to(self._device).eval()
        self._normalize = normalize.to(self._device)
        self._tokenize = tokenize
        self.width = self.embed_texts(["a"]).shape[1]

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[Any]:
        """Return unit embeddings (B, width) fp32 of images of ``image_size``."""
        pixels_BHW3 = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        pixels_B3HW = pixels_BHW3.to(self._device).permute(0, 3, 1, 2).float() / 255
        return self._embed(self._clip.encode_image, self._normalize(pixels_B3HW))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return unit embeddings (B, width) fp32."""
        return self._embed(self._clip.encode_text, self._tokenize(list(texts)).to(self._device))

    def _embed(self, encode: Callable[..., Tensor], inputs: Tensor) -> NDArray[Any]:
        is_fast = self._device.type == "cuda"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=is_fast):
            embeddings = encode(inputs)
        return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu().numpy()


def load_teacher(address: str) -> Teacher:
    """Load the CLIP at an address as a teacher.

    Raises:
        ConfigError, NotFoundError, ArtifactError: there is no such CLIP.
    """
    clip = load_clip(address)
    return Teacher(
        clip.model,
        image_size=clip.vision.image_size,
        normalize=Normalize(clip.vision.mean, clip.vision.std),
        tokenize=clip.tokenize,
    )


def replay_transform(dataset: Dataset, layer: str, size: int) -> Replay:
    """Return the replay of a teacher layer's stored augmentations, at (size, size)."""
    column = augmentation_column(layer_schema(dataset, layer, cache_folder()).names)
    return TorchvisionReplay(size) if column == TORCHVISION_AUGMENTATION else ReplayTransform(size)


def teacher_parent(view: View, distillation: DistillationConfig) -> Parent:
    """Return the teacher layer as a run's parent.

    Raises:
        ConfigError: it is missing, or of other captions or widths.
    """
    dataset, layer = view.dataset, distillation.layer
    if layer not in dataset.layers:
        known = ", ".join(n for n in dataset.layers if n.startswith("teacher/"))
        raise ConfigError(
            f"distillation.layer was {layer!r}",
            expected=f"one of {known}" if known else "a teacher layer, but the dataset has none",
            action="name such a layer, or compute one with `clipmill data embed-teacher`",
        )
    manifest = read_json(join(dataset.layer_uri(layer), LAYER_MANIFEST))
    _check_widths(dataset, distillation, manifest["summary"].get("widths", ""))
    embedded = [p["digest"] for p in manifest["parents"] if p["role"] == "captions"]
    if view.config.layer and dataset.layers[view.config.layer].digest not in embedded:
        raise ConfigError(
            f"{layer} has no embeddings of {view.config.layer}",
            expected="a teacher layer computed with the view's captions",
            action="compute one, or train on captions=real",
        )
    digest = dataset.layers[layer].digest
    return Parent(role="teacher", uri=dataset.layer_uri(layer), digest=digest)


def _check_widths(dataset: Dataset, distillation: DistillationConfig, stated: str) -> None:
    """Refuse widths other than the layer's; one of another tool states their sum alone."""
    layer, widths = distillation.layer, distillation.teacher_widths
    if stated:
        known = tuple(int(width) for width in stated.split(","))
        is_right, expected = widths == known, f"{known}, as in {layer}"
        action = f"set distillation.teacher_widths={list(known)}"
    else:
        kind = layer_schema(dataset, layer, cache_folder()).field("image").type
        total = (kind.value_type if pa.types.is_list(kind) else kind).list_size
        is_right, expected = sum(widths) == total, f"widths of the teachers, {total} together"
        number, rest = divmod(total, _VIT_L_14_WIDTH)
        likely = [total] if rest else [_VIT_L_14_WIDTH] * number
        action = f"set distillation.teacher_widths={likely}, or the width of each teacher"
    if not is_right:
        raise ConfigError(
            f"distillation.teacher_widths was {widths}", expected=expected, action=action
        )
