"""Pairs of a folder, or of URLs, into tars: listing, hashes and checks included.

Peers copy alone. What a source holds is written once; the tars are compared by what is in them.
Nothing of clipmill is imported at the top: img2dataset's environment lacks what it requires.
"""

import asyncio
import csv
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.case import LIMIT, Case, Contender, Sizes
from harness.session import Session

SIZE = (512, 384)
SHARD_SAMPLES = 1000
_NUM_DRAWN = 500
_SOURCE = "source"


def write_source(folder: Path, sizes: Sizes) -> None:
    """Write pairs of about 30 kB each, no two images alike."""
    images = draw(min(_NUM_DRAWN, sizes["pairs"]))
    source = folder / _SOURCE
    source.mkdir()
    for number in range(sizes["pairs"]):
        (source / f"{number:07d}.jpg").write_bytes(numbered(images[number % len(images)], number))
        (source / f"{number:07d}.txt").write_text(f"picture {number}")


def draw(count: int) -> list[bytes]:
    """Return smooth random pictures as JPEG."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize(SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
        files.append(file.getvalue())
    return files


def numbered(jpeg: bytes, number: int) -> bytes:
    """Return the picture as another file: with a comment after its start."""
    return jpeg[:2] + b"\xff\xfe\x00\x0a%08d" % number + jpeg[2:]


def contents(tars: Path) -> dict[str, Any]:
    """Return how many images tars hold, and a digest of images and captions in any order."""
    hashes = []
    for path in sorted(tars.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".txt")):
                    file = tar.extractfile(member)
                    assert file
                    hashes.append(hashlib.sha256(file.read()).hexdigest())
    return {"samples": len(hashes) // 2, "content": _digest(hashes)}


def _digest(hashes: list[str]) -> str:
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def run_tool(tool: Callable[[Path], None], folder: Path, count: int, session: Session) -> None:
    """Run something that writes tars, in a folder that is removed again; compare the first."""
    out = folder / f"out-{os.getpid()}"
    tool(out)
    session.answer(**contents(out))
    while True:
        shutil.rmtree(out)
        session.start()
        tool(out)
        session.stop(count)


def clipmill_folder(folder: Path, sizes: Sizes, session: Session) -> None:
    """Write a dataset on all cores."""
    from clipmill.data.shards.plan import ShardConfig
    from clipmill.data.shards.write import write_dataset

    config = ShardConfig(samples_per_shard=SHARD_SAMPLES)
    source = str(folder / _SOURCE)
    run_tool(
        lambda out: discard(write_dataset(config, source, str(out), num_processes=0)),
        folder,
        sizes["pairs"],
        session,
    )


def discard(_: object) -> None:
    """Return nothing."""


def shard_writer(folder: Path, sizes: Sizes, session: Session) -> None:
    """Write tars by webdataset, as its documentation does."""
    import webdataset

    def tool(out: Path) -> None:
        out.mkdir()
        pattern = f"{out}/%05d.tar"
        with webdataset.ShardWriter(pattern, maxcount=SHARD_SAMPLES, verbose=0) as writer:
            for path in sorted((folder / _SOURCE).glob("*.jpg")):
                writer.write(
                    {
                        "__key__": path.stem,
                        "jpg": path.read_bytes(),
                        "txt": path.with_suffix(".txt").read_text(),
                    }
                )

    run_tool(tool, folder, sizes["pairs"], session)


def copy_and_hash(folder: Path, sizes: Sizes, session: Session) -> None:
    """List a folder, copy each file's bytes into a file of many, and hash them: on all cores."""
    paths = sorted((folder / _SOURCE).iterdir())
    cores = len(os.sched_getaffinity(0))
    out = folder / "limit"

    def part(number: int) -> list[str]:
        hashes = []
        with (out / str(number)).open("wb") as file:
            for path in paths[number::cores]:
                data = path.read_bytes()
                hashes.append(hashlib.sha256(data).hexdigest())
                file.write(data)
        return hashes

    def lap() -> list[str]:
        nonlocal paths
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        paths = sorted((folder / _SOURCE).iterdir())
        with ThreadPoolExecutor(cores) as pool:
            return [found for part_hashes in pool.map(part, range(cores)) for found in part_hashes]

    hashes = lap()
    session.answer(samples=len(hashes) // 2, content=_digest(hashes))
    while True:
        shutil.rmtree(out)
        session.start()
        lap()
        session.stop(sizes["pairs"])


def write_images(folder: Path, sizes: Sizes) -> None:
    """Write what the server of URLs answers with."""
    (folder / "images").mkdir()
    for number, data in enumerate(draw(min(_NUM_DRAWN, sizes["urls"]))):
        (folder / "images" / f"{number:05d}.jpg").write_bytes(data)


async def _serve(images: list[bytes], seconds: tuple[float, float]) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                name = head.split(b" ", 2)[1].decode()
                await asyncio.sleep(random.uniform(*seconds))  # noqa: S311
                status, body = b"404 Not Found", b""
                if name.endswith(".jpg"):
                    number = int(name[1:-4])
                    status, body = b"200 OK", numbered(images[number % len(images)], number)
                length = str(len(body)).encode()
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Type: image/jpeg\r\n")
                writer.write(b"Content-Length: " + length + b"\r\n\r\n" + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def serve(folder: str, low: str, high: str) -> None:
    """Serve a folder's images under any number, after milliseconds of latency; print the port."""
    images = [path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))]
    asyncio.run(_serve(images, (float(low) / 1000, float(high) / 1000)))


@contextmanager
def url_table(folder: Path, sizes: Sizes) -> Iterator[Path]:
    """Yield a table of URLs of a server with a latency, which is a child of this process."""
    code = "import sys; from parts.sharding import serve; serve(*sys.argv[1:])"
    low, high = sizes["latency_low_ms"], sizes["latency_high_ms"]
    command = [sys.executable, "-c", code, str(folder / "images"), str(low), str(high)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert process.stdout
    root = f"http://127.0.0.1:{int(process.stdout.readline())}"
    table = folder / f"urls-{os.getpid()}.csv"
    with table.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows(
            (f"{root}/{number}.jpg", f"picture {number}") for number in range(sizes["urls"])
        )
    try:
        yield table
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def clipmill_urls(folder: Path, sizes: Sizes, session: Session) -> None:
    """Fetch, check and write in one process."""
    from clipmill.data.shards.plan import ShardConfig
    from clipmill.data.shards.write import write_dataset

    at_once = sizes["concurrency"]
    with url_table(folder, sizes) as table:
        source = f"urls:{table}?allow_private=true&concurrency={at_once}&per_host={at_once}"
        config = ShardConfig(samples_per_shard=SHARD_SAMPLES)
        run_tool(
            lambda out: discard(write_dataset(config, source, str(out))),
            folder,
            sizes["urls"],
            session,
        )


def img2dataset(folder: Path, sizes: Sizes, session: Session) -> None:
    """Fetch the same, with bytes left as they are."""
    from img2dataset import download

    with url_table(folder, sizes) as table:

        def tool(out: Path) -> None:
            download(
                url_list=str(table),
                input_format="csv",
                url_col="url",
                caption_col="caption",
                output_format="webdataset",
                output_folder=str(out),
                number_sample_per_shard=SHARD_SAMPLES,
                processes_count=1,
                thread_count=sizes["concurrency"],
                resize_mode="no",
                disable_all_reencoding=True,
                enable_wandb=False,
            )

        run_tool(tool, folder, sizes["urls"], session)


def fetch_and_hash(folder: Path, sizes: Sizes, session: Session) -> None:
    """Fetch the same over as many open connections; hash, and append to one file."""
    out = folder / "fetched"

    async def fetch_all(table: Path) -> list[str]:
        with table.open() as listing:
            rows = iter(list(csv.DictReader(listing)))
        hashes: list[str] = []

        async def work(file: io.BufferedWriter) -> None:
            connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
            for row in rows:
                host, _, path = row["url"].removeprefix("http://").partition("/")
                if connection is None:
                    connection = await asyncio.open_connection(*host.split(":"))
                reader, writer = connection
                writer.write(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                data = await reader.readexactly(int(head.rpartition(b": ")[2]))
                caption = row["caption"].encode()
                hashes.extend(hashlib.sha256(part).hexdigest() for part in (data, caption))
                file.write(data + caption)
            if connection:
                connection[1].close()

        with out.open("wb") as file:
            await asyncio.gather(*(work(file) for _ in range(sizes["concurrency"])))
        return hashes

    with url_table(folder, sizes) as table:
        hashes = asyncio.run(fetch_all(table))
        session.answer(samples=len(hashes) // 2, content=_digest(hashes))

        def lap() -> float:
            asyncio.run(fetch_all(table))
            return sizes["urls"]

        session.run(lap)


_FOLDER = (
    Contender(
        name="clipmill",
        run=clipmill_folder,
        settings="content hashes, each image decoded, duplicates found; a process a core",
    ),
    Contender(
        name="webdataset ShardWriter",
        run=shard_writer,
        packages=("webdataset",),
        settings="copies alone; maxcount=1000",
        at_least=1.0,
    ),
    Contender(
        name=LIMIT,
        run=copy_and_hash,
        settings="listing, copy and SHA-256 of the same bytes, a thread a core",
        at_least=0.7,
    ),
)
CASES = (
    Case(
        name="20,000 pairs of 512x384 JPEG",
        unit="pairs",
        prepare=write_source,
        contenders=_FOLDER,
        sizes={"pairs": 20_000},
        tiny={"pairs": 40},
    ),
    Case(
        name="200,000 pairs of 512x384 JPEG",
        unit="pairs",
        prepare=write_source,
        contenders=_FOLDER,
        sizes={"pairs": 200_000},
        tiny={"pairs": 50},
        rounds=1,
    ),
    Case(
        name="2,000 URLs of a local server",
        unit="URLs",
        prepare=write_images,
        contenders=(
            Contender(
                name="clipmill",
                run=clipmill_urls,
                settings="checks and hashes each image; one process",
            ),
            Contender(
                name="img2dataset",
                run=img2dataset,
                packages=("img2dataset",),
                settings="resize_mode=no, disable_all_reencoding; one process",
                at_least=2.5,
                environment="img2dataset",
            ),
            Contender(
                name=LIMIT,
                run=fetch_and_hash,
                settings="the same requests over open connections, SHA-256, one file; asyncio",
                at_least=0.7,
            ),
        ),
        sizes={"urls": 2000, "concurrency": 32, "latency_low_ms": 1, "latency_high_ms": 5},
        tiny={"urls": 30, "concurrency": 4, "latency_low_ms": 1, "latency_high_ms": 2},
    ),
)
