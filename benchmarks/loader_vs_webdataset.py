"""One peer's loader at work, for ``benchmarks/loader.py``: run by the interpreter that has it.

Reads a folder of JPEG files with captions in the peer's own format, which ``--prepare`` writes
once, and prints images a second as JSON. Needs open_clip_torch[training], mosaicml-streaming or
litdata, and nothing of clipmill.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from open_clip.transform import AugmentationCfg, image_transform

SCALE, RATIO = (0.9, 1.0), (0.75, 1.33)
_SHARD_SAMPLES = 256


def pairs(source: Path) -> Iterator[tuple[str, bytes, str]]:
    """Names, files and captions in a folder."""
    for path in sorted(source.glob("*.jpg")):
        yield path.stem, path.read_bytes(), path.with_suffix(".txt").read_text()


def transform_pil(size: int) -> Any:
    """open_clip's transform for training; its aspects are RATIO, and can't be set."""
    return image_transform(size, is_train=True, aug_cfg=AugmentationCfg(scale=SCALE))


def prepare_open_clip(source: Path, target: Path) -> None:
    """WebDataset tars."""
    import webdataset

    target.mkdir(parents=True)
    pattern = str(target / "%05d.tar")
    with webdataset.ShardWriter(pattern, maxcount=_SHARD_SAMPLES, verbose=0) as writer:
        for name, data, caption in pairs(source):
            writer.write({"__key__": name, "jpg": data, "txt": caption})


def batches_open_clip(target: Path, options: argparse.Namespace) -> Iterable[Any]:
    """``get_wds_dataset`` as open_clip's own training calls it."""
    from open_clip_train import data

    # webdataset has since begun to mark the ends of tars, which open_clip's grouping stumbles on.
    data.tar_file_expander = partial(data.tar_file_expander, eof_value=None)
    num_shards = len(list(target.glob("*.tar")))
    settings = SimpleNamespace(
        train_data=str(target / f"{{00000..{num_shards - 1:05d}}}.tar"),
        train_num_samples=100_000_000,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=options.batch_size,
        workers=options.workers,
        world_size=1,
    )
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    info = data.get_wds_dataset(settings, transform_pil(options.size), True, tokenizer=tokenizer)
    batches: Iterable[Any] = info.dataloader
    return batches


def prepare_streaming(source: Path, target: Path) -> None:
    """MDS shards."""
    from streaming import MDSWriter

    with MDSWriter(out=str(target), columns={"image": "bytes", "caption": "str"}) as writer:
        for _, data, caption in pairs(source):
            writer.write({"image": data, "caption": caption})


def batches_streaming(target: Path, options: argparse.Namespace) -> Iterator[Any]:
    """A StreamingDataset under torch's DataLoader, epoch after epoch."""
    import io

    from PIL import Image
    from streaming import StreamingDataset

    tokenizer, transform = open_clip.get_tokenizer("ViT-B-32"), transform_pil(options.size)

    class Pairs(StreamingDataset):  # type: ignore[misc]  # untyped
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            image = Image.open(io.BytesIO(sample["image"]))
            return transform(image), tokenizer(sample["caption"])[0]

    dataset = Pairs(local=str(target), shuffle=True, batch_size=options.batch_size)
    loader: Iterable[Any] = torch.utils.data.DataLoader(
        dataset, options.batch_size, num_workers=options.workers, persistent_workers=True
    )
    while True:
        yield from loader


def _litdata_item(path: str) -> dict[str, Any]:
    from PIL import Image

    return {"image": Image.open(path), "caption": Path(path).with_suffix(".txt").read_text()}


def prepare_litdata(source: Path, target: Path) -> None:
    """Chunks, with JPEG files kept as they are."""
    from litdata import optimize

    optimize(
        _litdata_item,
        [str(path) for path in sorted(source.glob("*.jpg"))],
        output_dir=str(target),
        chunk_bytes="16MB",
        num_workers=1,
    )


def batches_litdata(target: Path, options: argparse.Namespace) -> Iterator[Any]:
    """A StreamingDataLoader; it decodes to tensors, which torchvision's v2 transforms take."""
    from litdata import StreamingDataLoader, StreamingDataset
    from torchvision.transforms import InterpolationMode, v2

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(
                options.size, SCALE, RATIO, InterpolationMode.BICUBIC, antialias=True
            ),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ]
    )

    def transform(sample: dict[str, Any]) -> Any:
        return augment(sample["image"]), tokenizer(sample["caption"])[0]

    loader = StreamingDataLoader(
        StreamingDataset(str(target), shuffle=True, transform=transform),
        batch_size=options.batch_size,
        num_workers=options.workers,
        persistent_workers=True,
    )
    while True:
        yield from loader


def rates(
    batches: Iterable[Any], count: Callable[[Any], int], options: argparse.Namespace
) -> dict[str, float]:
    """Images a second, and a second of processor time, over ``options.batches`` batches.

    They come after as many as fill the queues; ``count`` tells how many images are in one. The
    processor's time, of this process and its workers, is what counts on a busy machine.
    """
    iterator = iter(batches)
    for _ in islice(iterator, options.warmup):
        pass
    started, processor, images = time.perf_counter(), processor_seconds(), 0
    for batch in islice(iterator, options.batches):
        images += count(batch)
    return {
        "second": images / (time.perf_counter() - started),
        "processor second": images / (processor_seconds() - processor),
    }


def processor_seconds() -> float:
    """Spent so far by this process and its children."""
    me = Path("/proc/self").resolve()
    processes = [me.name, *(me / "task" / me.name / "children").read_text().split()]
    ticks = 0
    for process in processes:
        # The name, in brackets, may hold spaces; user and system time are fields 14 and 15.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


PEERS = {
    "open_clip": (prepare_open_clip, batches_open_clip),
    "streaming": (prepare_streaming, batches_streaming),
    "litdata": (prepare_litdata, batches_litdata),
}


def main() -> None:
    """Prepare, or measure: litdata changes how processes start when it has prepared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prepare", action="store_true")
    for name in ("size", "batch-size", "workers", "warmup", "batches"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare, batches = PEERS[options.peer]
    target = options.folder / options.peer
    if options.prepare:
        prepare(options.folder / "source", target)
        return
    print(json.dumps(rates(batches(target, options), lambda batch: len(batch[0]), options)))


if __name__ == "__main__":
    main()
