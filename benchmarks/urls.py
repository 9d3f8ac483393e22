"""Fetching a table of URLs against img2dataset, from a local server with a latency.

Both have the same concurrency and resize the shorter side to the same size; ours checks each image
and finds duplicates besides. Rounds alternate, and the number of samples must be equal.

    python benchmarks/urls.py --peer PYTHON

where PYTHON is an interpreter that has img2dataset.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from clipmill.data.dataset import Dataset
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from scenes import hardware

# A server in a process of its own; asyncio serves many waiting requests at little cost.
SERVER = """
import asyncio, random, sys
from pathlib import Path
folder, low, high = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
images = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]

async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            name = head.split(b" ", 2)[1].decode()
            await asyncio.sleep(random.uniform(low, high))
            is_image = name.endswith(".jpg")
            body = images[int(name[1:-4]) % len(images)] if is_image else b""
            status = b"200 OK" if is_image else b"404 Not Found"
            writer.write(
                b"HTTP/1.1 " + status + b"\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: "
                + str(len(body)).encode() + b"\\r\\n\\r\\n" + body
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""

IMG2DATASET = """
import json, sys, time
from img2dataset import download
if __name__ == "__main__":
    table, out, threads, size, shard = sys.argv[1:]
    start = time.perf_counter()
    download(
        url_list=table, input_format="csv", url_col="url", caption_col="caption",
        output_format="webdataset", output_folder=out, number_sample_per_shard=int(shard),
        processes_count=1, thread_count=int(threads), image_size=int(size),
        resize_mode="keep_ratio", resize_only_if_bigger=True, skip_reencode=True,
        encode_quality=95,
        enable_wandb=False,
    )
    print(json.dumps(time.perf_counter() - start))
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--urls", type=int, default=5000)
    parser.add_argument("--images", type=int, default=200, help="different images")
    parser.add_argument("--rounds", type=int, default=3, help="alternating pairs of runs")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--size", type=int, default=256, help="shorter side, pixels")
    parser.add_argument("--latency", type=float, nargs=2, default=(1, 5), help="milliseconds")
    parser.add_argument("--peer", required=True, help="a Python interpreter with img2dataset")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        images = write_images(scratch / "images", arguments.images)
        with server(images, *arguments.latency) as root:
            table = scratch / "urls.csv"
            rows = "".join(f"{root}/{i}.jpg,picture {i}\n" for i in range(arguments.urls))
            table.write_text("url,caption\n" + rows)
            pairs = []
            for number in range(arguments.rounds):
                own = ours(table, scratch / f"ours-{number}", arguments)
                other = peer(table, scratch / f"peer-{number}", arguments)
                pairs.append((own, other))
    show(pairs, arguments)


def ours(table: Path, out: Path, arguments: argparse.Namespace) -> float:
    """Seconds of sharding in one process, the plan included."""
    source = (
        f"urls:{table}?allow_private=true&concurrency={arguments.concurrency}"
        f"&per_host={arguments.concurrency}"
    )
    config = ShardConfig(resize_shorter_side=arguments.size, jpeg_quality=95)
    start = time.perf_counter()
    uri = write_dataset(config, source, str(out))
    seconds = time.perf_counter() - start
    assert Dataset.open(uri).num_samples == arguments.urls
    return seconds


def peer(table: Path, out: Path, arguments: argparse.Namespace) -> float:
    """Seconds that img2dataset measured of itself, its imports left out."""
    script = out.with_suffix(".py")
    script.write_text(IMG2DATASET)  # a file, since its processes import it again
    options = (str(arguments.concurrency), str(arguments.size), "1000")
    command = [arguments.peer, str(script), str(table), str(out), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    stats = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
    assert sum(shard["successes"] for shard in stats) == arguments.urls
    seconds: float = json.loads(done.stdout.splitlines()[-1])
    return seconds


@contextmanager
def server(images: Path, low: float, high: float) -> Iterator[str]:
    """A server of images with a latency of ``low`` to ``high`` milliseconds; yields its root."""
    command = [sys.executable, "-c", SERVER, str(images), str(low / 1000), str(high / 1000)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def write_images(folder: Path, count: int) -> Path:
    """Write smooth random pictures with sides of 224 to 512 pixels."""
    folder.mkdir()
    pixels, sides = np.random.default_rng(0), random.Random(0)  # noqa: S311
    for i in range(count):
        size = sides.randint(224, 512), sides.randint(224, 512)
        coarse = Image.fromarray(pixels.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=92)
    return folder


def show(pairs: list[tuple[float, float]], arguments: argparse.Namespace) -> None:
    """A row a round, and the median of the ratios."""
    low, high = arguments.latency
    title = (
        f"{arguments.urls} URLs, {arguments.concurrency} at once, latency {low:g} to {high:g} ms"
    )
    table = Table(title=title, caption=hardware())
    for heading in ("round", "clipmill, URLs/s", "img2dataset, URLs/s", "ratio"):
        table.add_column(heading, justify="right")
    for number, (own, other) in enumerate(pairs, 1):
        rates = (f"{arguments.urls / seconds:.0f}" for seconds in (own, other))
        table.add_row(str(number), *rates, f"{other / own:.2f}")
    table.add_row("median", "", "", f"{statistics.median(other / own for own, other in pairs):.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
