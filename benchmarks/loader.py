"""The loader at 224 px with two processes: ours from local shards and from S3, and its peers.

``python benchmarks/loader.py --peers PYTHON``, where that interpreter has open_clip_torch with
its training extra, mosaicml-streaming and litdata; without it, ours alone is measured. All read
the same 512 px JPEG files, crop and resize alike and tokenize captions. Each contender runs in a
process of its own, one after another, several rounds: the table holds medians.

The peers hand out normalized floats; ours hands out bytes, since a GPU normalizes for nothing.
The row "ours, normalized" does that in this process too; "ours, mixture" reads the same files as
two datasets of a mixture, with weights 0.7 and 0.3.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import torch
from loader_vs_webdataset import rates
from PIL import Image
from rich.console import Console
from rich.table import Table

from clipmill.data.dataset import Dataset
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.dataloader import PairBatch, PairDataLoader
from clipmill.data.loading.mixture import Mixture, MixtureSource
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.models.encoders import Normalize
from clipmill.models.tokenizer import Tokenizer
from clipmill.scenes import SceneConfig, draw
from clipmill.storage import SeaweedServer

_DRAWN, _PICTURE_SIZE, _QUALITY = 192, 512, 90
_SHARD_SAMPLES = 256
OURS = ("ours", "ours, normalized", "ours, mixture", "ours, S3")
PEERS = ("open_clip", "streaming", "litdata")


def write_source(folder: Path, count: int) -> None:
    """Pairs of pictures that were drawn, each many times, with a caption of its own."""
    folder.mkdir(parents=True)
    drawn = []
    for index in range(min(count, _DRAWN)):
        scene = draw(SceneConfig(size=_PICTURE_SIZE, supersample=1), index)
        buffer = io.BytesIO()
        Image.fromarray(scene.image_HW3).save(buffer, "JPEG", quality=_QUALITY)
        drawn.append((buffer.getvalue(), scene.captions["rich"]))
    for number in range(count):
        data, caption = drawn[number % len(drawn)]
        (folder / f"{number:06d}.jpg").write_bytes(data)
        (folder / f"{number:06d}.txt").write_text(f"{caption} ({number})")


def our_batches(uri: str, options: argparse.Namespace) -> Iterator[PairBatch]:
    """The loader as training sets it up."""
    if options.contender == "ours, mixture":
        weights = zip(options.halves, (0.7, 0.3), ("first", "second"), strict=True)
        view = Mixture.open(
            [MixtureSource(dataset=u, weight=w, name=name) for u, w, name in weights], ViewConfig()
        )
    else:
        view = Mixture.of_view(View(Dataset.open(uri), ViewConfig()))
    loader = PairDataLoader(
        view,
        DataLoaderConfig(num_workers=options.workers),
        batch_size=options.batch_size,
        transform=CropTransform(options.size, RandomResizedCropConfig()),
        tokenize=Tokenizer(),
        cache=options.folder / "cache",
    )
    return iter(loader)


def measure_ours(contender: str, options: argparse.Namespace) -> dict[str, float]:
    """The rates of one of OURS."""
    uri = options.s3 if contender == "ours, S3" else options.local
    if contender == "ours, S3":  # an epoch, after which the cache is warm
        num_batches = -(-Dataset.open(uri).num_samples // options.batch_size)
        for _ in islice(our_batches(uri, options), num_batches):
            pass
    normalize = Normalize()

    def count(batch: PairBatch) -> int:
        if contender == "ours, normalized":
            normalize(batch.images_B3HW.float() / 255)
        return len(batch.uids)

    return rates(our_batches(uri, options), count, options)


def run(contender: str, options: argparse.Namespace) -> dict[str, float]:
    """One round of one contender, in a process of its own."""
    names = ("size", "batch_size", "workers", "warmup", "batches")
    numbers = [f"--{n.replace('_', '-')}={getattr(options, n)}" for n in names]
    if contender in PEERS:
        command = [*peer(contender, options), *numbers]
    else:
        command = [sys.executable, __file__, "--contender", contender, *numbers]
        command += ["--folder", str(options.folder), "--local", options.local, "--s3", options.s3]
        command += ["--halves", *options.halves]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def peer(contender: str, options: argparse.Namespace) -> list[str]:
    """The command that runs a peer."""
    program = Path(__file__).with_name("loader_vs_webdataset.py")
    return [options.peers, str(program), contender, str(options.folder)]


def compare(options: argparse.Namespace) -> None:
    """Write the files, let all contenders take turns, print the table."""
    source = options.folder / "source"
    write_source(source, options.samples)
    config = ShardConfig(samples_per_shard=_SHARD_SAMPLES)
    options.local = write_dataset(config, str(source), str(options.folder / "store"))
    options.s3 = write_dataset(config, str(source), options.s3) if options.s3 else ""
    for half in range(2):
        folder = options.folder / f"half{half}"
        folder.mkdir()
        for path in sorted(source.iterdir()):
            if int(path.stem) % 2 == half:
                (folder / path.name).hardlink_to(path)
        options.halves.append(write_dataset(config, str(folder), str(options.folder / "store")))
    contenders = [c for c in OURS if options.s3 or c != "ours, S3"]
    contenders += PEERS if options.peers else ()
    for contender in PEERS if options.peers else ():
        subprocess.run([*peer(contender, options), "--prepare"], check=True)
    found: dict[str, list[dict[str, float]]] = {contender: [] for contender in contenders}
    for _ in range(options.rounds):
        for contender in contenders:
            found[contender].append(run(contender, options))
    title = f"Images at {options.size} px, {options.workers} workers, {os.cpu_count()} CPUs"
    table = Table(title=f"{title}, load {os.getloadavg()[0]:.1f}")
    table.add_column("loader")
    units = ("second", "processor second")
    for unit in units:
        table.add_column(f"a {unit}", justify="right")
        table.add_column("ours / it", justify="right")
    medians = {
        contender: [statistics.median(rate[unit] for rate in rounds) for unit in units]
        for contender, rounds in found.items()
    }
    for contender, values in medians.items():
        cells = []
        for value, ours in zip(values, medians["ours"], strict=True):
            cells += [f"{value:.0f}", f"{ours / value:.2f}"]
        table.add_row(contender, *cells)
    Console().print(table)


def main() -> None:
    """Compare, or be one contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default="", help="interpreter that has the peers")
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--no-s3", action="store_true", help="leave S3 out")
    parser.add_argument("--contender", choices=OURS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--local", default="", help=argparse.SUPPRESS)
    parser.add_argument("--s3", default="", help=argparse.SUPPRESS)
    parser.add_argument("--halves", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        torch.set_num_threads(1)
        print(json.dumps(measure_ours(options.contender, options)))
        return
    with ExitStack() as stack:
        options.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not options.no_s3:
            server = stack.enter_context(SeaweedServer(options.folder / "weed"))
            os.environ.update(server.environment)
            options.s3 = "s3://benchmark/store"
        compare(options)


if __name__ == "__main__":
    main()
