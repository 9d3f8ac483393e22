"""Captions from a chat endpoint that takes a fixed time, so many requests at once.

All send each image with a prompt and keep the answer. The limit sends requests that were encoded
before, over as many connections as may be under way: latency times concurrency, as this machine
reaches it.
"""

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.case import LIMIT, Case, Contender, Sizes
from harness.session import Session

PROMPT = "Describe this image, whose alt text is: {caption}"
MODEL, MAX_TOKENS = "model", 96
_SIZE = (256, 192)
_URI = "uri.txt"


def write_data(folder: Path, sizes: Sizes) -> None:
    """Write a dataset of small JPEG files, each with a caption of its own."""
    import numpy as np
    from PIL import Image

    from clipmill.data.shards.plan import ShardConfig
    from clipmill.data.shards.write import write_dataset

    source = folder / "source"
    source.mkdir()
    generator = np.random.default_rng(0)
    for number in range(sizes["samples"]):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize(_SIZE, Image.Resampling.BICUBIC).save(source / f"{number:06d}.jpg")
        (source / f"{number:06d}.txt").write_text(f"picture {number}")
    (folder / _URI).write_text(write_dataset(ShardConfig(), str(source), str(folder / "store")))


async def _serve(seconds: float) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                await asyncio.sleep(seconds)
                content = body["messages"][-1]["content"]
                (text,) = (part["text"] for part in content if part["type"] == "text")
                message = {"role": "assistant", "content": f"This shows {text.split(': ')[-1]}."}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
                data = json.dumps({"choices": [choice], "usage": usage}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def serve(milliseconds: str) -> None:
    """Answer chat completions after so many milliseconds each; print the port."""
    asyncio.run(_serve(float(milliseconds) / 1000))


@contextmanager
def endpoint(sizes: Sizes) -> Iterator[int]:
    """Yield the port of an endpoint, which is a child of this process."""
    code = "import sys; from parts.recaption import serve; serve(sys.argv[1])"
    command = [sys.executable, "-c", code, str(sizes["latency_ms"])]
    folder = Path(__file__).parents[1]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    assert process.stdout
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _answer(session: Session, captions: list[str]) -> None:
    text = "\n".join(sorted(captions))
    session.answer(captions=len(captions), content=hashlib.sha256(text.encode()).hexdigest())


def clipmill(folder: Path, sizes: Sizes, session: Session) -> None:
    """``recaption`` with the captioner ``vlm``, into another layer each time."""
    from clipmill.data.captioners.config import CaptionersConfig, ChatClientConfig, VlmConfig
    from clipmill.data.dataset import Dataset
    from clipmill.data.layers import read_layer
    from clipmill.data.recaption import recaption

    uri = (folder / _URI).read_text()

    def caption(port: int, seed: int) -> str:
        config = CaptionersConfig(
            vlm=VlmConfig(model=MODEL, prompt=PROMPT, max_tokens=MAX_TOKENS, seed=seed),
            endpoint=ChatClientConfig(concurrency=sizes["concurrency"]),
            batch_size=sizes["batch_size"],
        )
        address = f"vlm:http://127.0.0.1:{port}/v1"
        return recaption(config, uri, address, report=lambda *_: None)

    with endpoint(sizes) as port:
        layer = caption(port, 0)
        dataset = Dataset.open(uri)
        cache = Path(os.environ["CLIPMILL_CACHE"])
        rows = [
            text
            for index in range(len(dataset.shards))
            for texts in read_layer(dataset, layer, index, cache)["captions"].to_pylist()
            for text in texts
        ]
        _answer(session, rows)
        seed = 0

        def lap() -> float:
            nonlocal seed
            seed += 1
            caption(port, seed)
            return sizes["samples"]

        session.run(lap)


def _body(image: bytes, caption: str) -> dict[str, Any]:
    url = "data:image/jpeg;base64," + base64.b64encode(image).decode()
    content = [
        {"type": "text", "text": PROMPT.replace("{caption}", caption)},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL, "max_tokens": MAX_TOKENS, "messages": messages}


def _samples(folder: Path) -> Iterator[tuple[bytes, str]]:
    """Images and captions in the dataset's tars, in order."""
    for path in sorted((Path((folder / _URI).read_text()) / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            parts: dict[str, dict[str, bytes]] = {}
            for member in tar:
                file = tar.extractfile(member)
                assert file
                name, _, kind = member.name.partition(".")
                parts.setdefault(name, {})[kind] = file.read()
        for sample in parts.values():
            yield sample["jpg"], sample["txt"].decode()


def asyncio_script(folder: Path, sizes: Sizes, session: Session) -> None:
    """httpx's asynchronous client under a semaphore, results as JSON lines."""
    import httpx

    async def caption_all(port: int) -> list[str]:
        at_once = asyncio.Semaphore(sizes["concurrency"])
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        connections = sizes["concurrency"]
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:

            async def caption(image: bytes, text: str) -> str:
                async with at_once:
                    response = await client.post(url, json=_body(image, text))
                response.raise_for_status()
                answer: str = response.json()["choices"][0]["message"]["content"]
                return answer

            tasks = [asyncio.create_task(caption(*sample)) for sample in _samples(folder)]
            captions = await asyncio.gather(*tasks)
        lines = "".join(json.dumps({"caption": text}) + "\n" for text in captions)
        (folder / "script.jsonl").write_text(lines)
        return captions

    with endpoint(sizes) as port:
        _answer(session, asyncio.run(caption_all(port)))
        session.run(lambda: len(asyncio.run(caption_all(port))))


def encoded_requests(folder: Path, sizes: Sizes, session: Session) -> None:
    """Requests that lie encoded in memory, over connections of their own."""

    async def send_all(port: int, requests: list[bytes]) -> list[bytes]:
        rest = iter(requests)
        answers: list[bytes] = []

        async def work() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for request in rest:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                answers.append(await reader.readexactly(int(head.rpartition(b": ")[2])))
            writer.close()

        await asyncio.gather(*(work() for _ in range(sizes["concurrency"])))
        return answers

    with endpoint(sizes) as port:
        requests = []
        for image, caption in _samples(folder):
            data = json.dumps(_body(image, caption)).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n"
            requests.append(head.encode() + data)
        answers = asyncio.run(send_all(port, requests))
        texts = [json.loads(a)["choices"][0]["message"]["content"] for a in answers]
        _answer(session, texts)
        session.run(lambda: len(asyncio.run(send_all(port, requests))))


CASES = (
    Case(
        name="an endpoint that takes 100 ms, 64 requests at once",
        unit="captions",
        prepare=write_data,
        contenders=(
            Contender(
                name="clipmill",
                run=clipmill,
                packages=("httpx",),
                settings="captioner vlm; images decoded, limited in size and encoded again",
            ),
            Contender(
                name="asyncio script",
                run=asyncio_script,
                packages=("httpx",),
                settings="AsyncClient, a semaphore; files sent as they are; JSON lines",
                at_least=1.0,
            ),
            Contender(
                name=LIMIT,
                run=encoded_requests,
                settings="the same requests encoded before, over as many connections",
                at_least=0.95,
            ),
        ),
        sizes={"samples": 1920, "latency_ms": 100, "concurrency": 64, "batch_size": 512},
        tiny={"samples": 12, "latency_ms": 5, "concurrency": 4, "batch_size": 8},
    ),
)
