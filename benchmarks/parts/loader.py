"""Batches of pairs with two captions and a score filter, for two workers.

All read the same JPEG files, crop and resize alike, and tokenize both captions. The filter is
applied by clipmill while it reads; the peers' copies hold only what it keeps. open_clip's own
pipeline has one caption, and hands out normalized floats: ours does the same in a case of its own.
"""

import io
import json
import multiprocessing
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.case import LIMIT, Case, Contender, Sizes
from harness.session import Session

SCALE, RATIO = (0.9, 1.0), (0.75, 1.33)  # CLIP-QC, Table 11
KEPT_SCORE = 0.25
SHARD_SAMPLES = 256
_NUM_DRAWN = 192
_QUALITY = 90
_KEPT = "kept.json"


def write_data(folder: Path, sizes: Sizes) -> None:
    """Write a dataset with synthetic captions and scores, its selection, and what it keeps."""
    import pyarrow as pa

    from clipmill.data.dataset import Dataset
    from clipmill.data.filters import ScoreRangeFilter
    from clipmill.data.layers import commit_layer, write_layer_shard
    from clipmill.data.select import SelectConfig, filter_steps, select
    from clipmill.data.shards.plan import ShardConfig
    from clipmill.data.shards.read import read_shard
    from clipmill.data.shards.write import write_dataset

    source = folder / "source"
    write_source(source, sizes["samples"], sizes["image_size"])
    config = ShardConfig(samples_per_shard=SHARD_SAMPLES)
    dataset = Dataset.open(write_dataset(config, str(source), str(folder / "store")))
    generator = random.Random(0)  # noqa: S311
    kept = []
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, folder / "cache") as reader:
            texts = [reader.caption(row) for row in range(len(reader))]
        scores = [generator.random() for _ in texts]
        synthetic = [f"a rendered scene, namely {text}" for text in texts]
        uids = pa.array(dataset.uids(index), pa.string())
        rows = pa.table({"uid": uids, "captions": [[text] for text in synthetic]})
        write_layer_shard(dataset, "captions/synthetic-1", index, rows)
        score = pa.table({"uid": uids, "value": pa.array(scores, pa.float32())})
        write_layer_shard(dataset, "score/value-1", index, score)
        kept += [
            {"name": text.rpartition("(")[2].rstrip(")"), "captions": [text, other]}
            for text, other, value in zip(texts, synthetic, scores, strict=True)
            if value >= KEPT_SCORE
        ]
    for layer in ("captions/synthetic-1", "score/value-1"):
        dataset = commit_layer(dataset, layer, parents=(), detail={})
    rule = ScoreRangeFilter(layer="score/value", column="value", min_score=KEPT_SCORE)
    selection = SelectConfig(name="scored", filters=filter_steps(rule))
    layer = select(selection, dataset.uri, report=lambda *_: None)
    state = {"uri": dataset.uri, "selection": layer, "kept": kept}
    (folder / _KEPT).write_text(json.dumps(state))


def write_source(folder: Path, count: int, size: int) -> None:
    """Pairs of drawn scenes, each many times, with a caption of its own."""
    from PIL import Image

    from clipmill.scenes import SceneConfig, draw

    folder.mkdir()
    drawn = []
    for index in range(min(count, _NUM_DRAWN)):
        scene = draw(SceneConfig(size=size, supersample=1), index)
        buffer = io.BytesIO()
        Image.fromarray(scene.image_HW3).save(buffer, "JPEG", quality=_QUALITY)
        drawn.append((buffer.getvalue(), scene.captions["rich"]))
    for number in range(count):
        data, caption = drawn[number % len(drawn)]
        (folder / f"{number:06d}.jpg").write_bytes(data)
        (folder / f"{number:06d}.txt").write_text(f"{caption} ({number:06d})")


def _kept(folder: Path) -> list[tuple[Path, list[str]]]:
    """Files and captions that the filter keeps."""
    rows = json.loads((folder / _KEPT).read_text())["kept"]
    return [(folder / "source" / f"{row['name']}.jpg", row["captions"]) for row in rows]


def run_batches(
    batches: Iterator[Any],
    read: Callable[[Any], tuple[Any, Any]],
    folder: Path,
    sizes: Sizes,
    session: Session,
) -> None:
    """Take batches; ``read`` returns one's images (B, 3, H, W) and tokens (B, T) or their names.

    The answer is how many samples there are, and the images' mean, from batches until all samples
    came or three epochs' worth did. A lap begins after as many batches as lie ready.
    """
    expected = len(_kept(folder))
    seen: set[Any] = set()
    total = pixels = 0.0
    limit = 3 * expected + 4 * sizes["batch_size"]
    taken = 0
    while len(seen) < expected and taken < limit:
        images, names = read(next(batches))
        taken += len(images)
        seen |= {tuple(name.tolist()) if hasattr(name, "tolist") else name for name in names}
        total += float(images.double().sum())
        pixels += images.numel()
    session.answer(samples=len(seen), mean=total / pixels)
    while True:
        # What was prepared before the lap isn't counted.
        for batch in islice(batches, sizes["ready"]):
            read(batch)
        session.start()
        count = 0
        for batch in islice(batches, sizes["batches"]):
            count += len(read(batch)[0])
        session.stop(count)


def clipmill(folder: Path, sizes: Sizes, session: Session, *, normalized: bool = False) -> None:
    """The loader as training sets it up."""
    import torch

    from clipmill.data.dataset import Dataset
    from clipmill.data.loading.config import DataLoaderConfig
    from clipmill.data.loading.dataloader import PairBatch, PairDataLoader
    from clipmill.data.loading.view import View, ViewConfig
    from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
    from clipmill.models.encoders import Normalize
    from clipmill.models.tokenizer import Tokenizer

    torch.set_num_threads(1)
    state = json.loads((folder / _KEPT).read_text())
    config = ViewConfig(
        captions="both", layer="captions/synthetic-1", selection_layers=(state["selection"],)
    )
    loader = PairDataLoader(
        View(Dataset.open(state["uri"]), config),
        DataLoaderConfig(num_workers=sizes["workers"]),
        batch_size=sizes["batch_size"],
        transform=CropTransform(sizes["size"], RandomResizedCropConfig(scale=SCALE, ratio=RATIO)),
        tokenize=Tokenizer(),
        cache=folder / "cache",
    )
    normalize = Normalize()

    def read(batch: PairBatch) -> tuple[Any, Any]:
        images = batch.images_B3HW
        return normalize(images.float() / 255) if normalized else images, batch.uids

    run_batches(iter(loader), read, folder, sizes, session)


def open_clip(folder: Path, sizes: Sizes, session: Session) -> None:
    """``get_wds_dataset`` as open_clip's own training calls it; the real caption alone."""
    import open_clip
    import torch
    import webdataset
    from open_clip.transform import AugmentationCfg, image_transform
    from open_clip_train import data

    torch.set_num_threads(1)
    target = folder / "wds"
    target.mkdir()
    with webdataset.ShardWriter(f"{target}/%05d.tar", maxcount=SHARD_SAMPLES, verbose=0) as writer:
        for path, captions in _kept(folder):
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "txt": captions[0]})
    # webdataset has since begun to mark the ends of tars, which open_clip's grouping stumbles on.
    data.tar_file_expander = partial(data.tar_file_expander, eof_value=None)
    num_shards = len(list(target.glob("*.tar")))
    settings = SimpleNamespace(
        train_data=str(target / f"{{00000..{num_shards - 1:05d}}}.tar"),
        train_num_samples=100_000_000,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=sizes["batch_size"],
        workers=min(sizes["workers"], num_shards),
        world_size=1,
    )
    # Its aspects are RATIO, and can't be set.
    transform = image_transform(sizes["size"], is_train=True, aug_cfg=AugmentationCfg(scale=SCALE))
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    info = data.get_wds_dataset(settings, transform, True, tokenizer=tokenizer)
    run_batches(
        _endless(info.dataloader), lambda batch: (batch[0], batch[1]), folder, sizes, session
    )


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _pil_crop(size: int) -> Callable[[Any], Any]:
    """torchvision's crop of a PIL image, as bytes."""
    from torchvision.transforms import InterpolationMode, v2

    crop = v2.RandomResizedCrop(size, SCALE, RATIO, InterpolationMode.BICUBIC, antialias=True)
    transform: Callable[[Any], Any] = v2.Compose([crop, v2.PILToTensor()])
    return transform


def streaming(folder: Path, sizes: Sizes, session: Session) -> None:
    """A StreamingDataset of MDS shards under torch's DataLoader, epoch after epoch."""
    import open_clip
    import torch
    from PIL import Image
    from streaming import MDSWriter, StreamingDataset

    torch.set_num_threads(1)
    columns = {"image": "bytes", "real": "str", "synthetic": "str"}
    with MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
        for path, (real, synthetic) in _kept(folder):
            writer.write({"image": path.read_bytes(), "real": real, "synthetic": synthetic})
    tokenizer, transform = open_clip.get_tokenizer("ViT-B-32"), _pil_crop(sizes["size"])

    class Pairs(StreamingDataset):  # type: ignore[misc]  # untyped
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            image = Image.open(io.BytesIO(sample["image"])).convert("RGB")
            tokens = tokenizer([sample["real"], sample["synthetic"]])
            return transform(image), tokens[0], tokens[1]

    dataset = Pairs(local=str(folder / "mds"), shuffle=True, batch_size=sizes["batch_size"])
    loader: Iterable[Any] = torch.utils.data.DataLoader(
        dataset,
        sizes["batch_size"],
        num_workers=sizes["workers"],
        persistent_workers=bool(sizes["workers"]),
    )
    run_batches(_endless(loader), lambda batch: (batch[0], batch[1]), folder, sizes, session)


def _litdata_item(row: tuple[Path, list[str]]) -> dict[str, Any]:
    from PIL import Image

    return {"image": Image.open(row[0]), "real": row[1][0], "synthetic": row[1][1]}


def litdata(folder: Path, sizes: Sizes, session: Session) -> None:
    """A StreamingDataLoader of chunks with JPEG files as they are, which it decodes to tensors."""
    # It changes how processes start when it has prepared.
    writer = multiprocessing.get_context("spawn").Process(target=_write_litdata, args=(folder,))
    writer.start()
    writer.join()
    import open_clip
    import torch
    from litdata import StreamingDataLoader, StreamingDataset
    from torchvision.transforms import InterpolationMode, v2

    torch.set_num_threads(1)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    augment = v2.RandomResizedCrop(
        sizes["size"], SCALE, RATIO, InterpolationMode.BICUBIC, antialias=True
    )

    def transform(sample: dict[str, Any]) -> Any:
        tokens = tokenizer([sample["real"], sample["synthetic"]])
        return augment(sample["image"]), tokens[0], tokens[1]

    loader = StreamingDataLoader(
        StreamingDataset(str(folder / "litdata"), shuffle=True, transform=transform),
        batch_size=sizes["batch_size"],
        num_workers=sizes["workers"],
        persistent_workers=bool(sizes["workers"]),
    )
    run_batches(_endless(loader), lambda batch: (batch[0], batch[1]), folder, sizes, session)


def _write_litdata(folder: Path) -> None:
    from litdata import optimize

    optimize(
        _litdata_item,
        _kept(folder),
        output_dir=str(folder / "litdata"),
        chunk_bytes="16MB",
        num_workers=1,
    )


def _decode_part(files: list[bytes], size: int, seconds: float) -> tuple[int, float]:
    """Decode and resize files until the time is over; return how many, and their mean."""
    import simplejpeg
    import torch

    torch.set_num_threads(1)
    generator = random.Random(0)  # noqa: S311
    count, total = 0, 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or count < len(files):
        data = files[count % len(files)]
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        # A square crop of the area that contenders draw, at the scale that it needs.
        share = generator.uniform(*SCALE) ** 0.5
        side = int(share * min(height, width))
        reduction = next((r for r in (8, 4, 2) if side // r >= size), 1)
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=-(-height // reduction), min_width=-(-width // reduction)
        )
        side //= reduction
        top = generator.randint(0, pixels.shape[0] - side)
        left = generator.randint(0, pixels.shape[1] - side)
        window = torch.from_numpy(pixels[None, top : top + side, left : left + side])
        image = torch.nn.functional.interpolate(
            window.permute(0, 3, 1, 2), (size, size), mode="bicubic", antialias=True
        )
        if count < len(files):
            total += float(image.double().mean())
        count += 1
    return count, total / len(files)


def decode_and_resize(folder: Path, sizes: Sizes, session: Session) -> None:
    """Decode at the scale that is needed and resize, from memory, in as many processes."""
    files = [path.read_bytes() for path, _ in _kept(folder)]
    workers = max(sizes["workers"], 1)
    parts = [files[number::workers] for number in range(workers)]
    with ExitStack() as stack:
        parallel: Callable[..., Iterable[tuple[int, float]]] = map
        if sizes["workers"]:
            spawn = multiprocessing.get_context("spawn")
            parallel = stack.enter_context(ProcessPoolExecutor(workers, spawn)).map

        def decode(seconds: float) -> list[tuple[int, float]]:
            times = [seconds] * workers
            return list(parallel(_decode_part, parts, [sizes["size"]] * workers, times))

        means = [mean for _, mean in decode(0)]
        session.answer(samples=len(files), mean=sum(means) / len(means))
        session.run(lambda: sum(count for count, _ in decode(sizes["limit_seconds"])))


_SIZES = {
    "samples": 4096,
    "image_size": 512,
    "size": 224,
    "batch_size": 64,
    "workers": 2,
    "ready": 8,
    "batches": 60,
    "limit_seconds": 3,
}
_TINY = {
    "samples": 48,
    "image_size": 128,
    "size": 64,
    "batch_size": 8,
    "workers": 0,
    "ready": 1,
    "batches": 2,
    "limit_seconds": 0,
}
_TWO_CAPTIONS = "two captions; bytes"
CASES = (
    Case(
        name="512 px JPEG to 224 px, bytes",
        unit="images",
        prepare=write_data,
        contenders=(
            Contender(
                name="clipmill",
                run=clipmill,
                settings=f"{_TWO_CAPTIONS}; score filter applied while reading",
            ),
            Contender(
                name="litdata",
                run=litdata,
                packages=("litdata", "torchvision"),
                settings=f"{_TWO_CAPTIONS}; JPEG kept, torchvision v2 on tensors",
                at_least=1.5,
            ),
            Contender(
                name="mosaicml-streaming",
                run=streaming,
                packages=("mosaicml-streaming", "torchvision"),
                settings=f"{_TWO_CAPTIONS}; MDS, Pillow, torchvision v2",
                at_least=1.5,
            ),
            Contender(
                name=LIMIT,
                run=decode_and_resize,
                packages=("simplejpeg",),
                settings="libjpeg-turbo at the needed scale, crop and resize, from memory",
                at_least=0.85,
            ),
        ),
        sizes=_SIZES,
        tiny=_TINY,
        tolerances={"mean": 0.03},
    ),
    Case(
        name="512 px JPEG to 224 px, normalized",
        unit="images",
        prepare=write_data,
        contenders=(
            Contender(
                name="clipmill",
                run=partial(clipmill, normalized=True),
                settings="two captions; score filter; floats made in the training process",
            ),
            Contender(
                name="open_clip",
                run=open_clip,
                packages=("open_clip_torch", "webdataset"),
                settings="get_wds_dataset; one caption; normalized floats",
                at_least=1.5,
            ),
        ),
        sizes=_SIZES,
        tiny=_TINY,
        # Of values around zero.
        tolerances={"mean": 0.2},
    ),
)
