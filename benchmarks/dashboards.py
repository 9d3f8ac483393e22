"""Every dashboard as a picture, from a real Prometheus that scrapes a short run of the real thing.

    python benchmarks/dashboards.py docs/dashboards

Draws scenes, shards them with bad files among them, trains a captioner, recaptions, pretrains,
fine-tunes twice, and serves a stable and a canary pair of models under a load with a rush in it:
some four minutes of two cores.
Needs ``prometheus`` and matplotlib. Prints which panels have no data, and fails where one should.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from dashboard_picture import STEP_SECONDS, draw

from clipmill.cluster.monitoring.rules import rules
from clipmill.errors import ServerError
from clipmill.processes import free_port
from clipmill.scenes.formats import (
    write_ade20k,
    write_caption_folder,
    write_class_folder,
    write_nyu,
)
from clipmill.scenes.geometry import SceneConfig
from clipmill.serve.client import Client
from clipmill.serve.config import ServingConfig
from clipmill.serve.launch import ServerProcess
from clipmill.stage_records import METRICS_VARIABLE

CHART = Path(__file__).resolve().parent.parent / "helm" / "clipmill"
HOST = "127.0.0.1"
STEPS = ("train.batch_size=16", "train.log_every=5", "train.checkpoint_every=10")
NOTHING_HAPPENED = {
    "Requests to a captioning endpoint, by outcome, per second",
    "Bad samples that a data loader replaced, by reason, per second",
    "Skipped optimizer updates, by reason, per second",
    "Tokens of prompts and completions, per second",
}
"""Panels of what this run has none of: faults, other captioners."""
LOAD_SECONDS = 90.0
RUSH_SECONDS = (30.0, 55.0)
"""When the load triples, and when it's over."""


class Prometheus:
    """A server with two targets, and its answers as lines."""

    def __init__(self, folder: Path, job: int, endpoints: dict[str, int]) -> None:
        self.port = free_port(HOST)
        targets = [{"targets": [f"{HOST}:{job}"], "labels": {"namespace": "ml"}}]
        targets += [
            {
                "targets": [f"{HOST}:{port}"],
                "labels": {"namespace": "ml", "clipmill_io_track": track},
            }
            for track, port in endpoints.items()
        ]
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "2s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "clipmill", "static_configs": targets}],
        }
        made = rules(".*")
        for group in made["groups"]:
            group.pop("interval", None)
        (folder / "rules.yaml").write_text(yaml.safe_dump(made))
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
        self.command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={HOST}:{self.port}",
        ]

    def lines(self, target: dict[str, str], start: float, end: float) -> list[dict[str, Any]]:
        """Each series of a panel's query over the run: its labels, values and quantile."""
        # Such a run doesn't last the minutes that a dashboard looks back.
        asked = target["expr"].replace("$__rate_interval", "10s").replace("[5m]", "[20s]")
        asked = asked.replace("$namespace", ".*")
        fields = {"query": asked, "start": start, "end": end, "step": STEP_SECONDS}
        url = f"http://{HOST}:{self.port}/api/v1/query_range?{urllib.parse.urlencode(fields)}"
        with urllib.request.urlopen(url) as answer:  # our own server
            found = json.load(answer)["data"]["result"]
        first = target["legendFormat"].partition(" ")[0]
        quantile = "" if first == "__auto" else first
        return [{**series, "quantile": quantile} for series in found]


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    """The command, for as long as the block lasts."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def made_by(*command: str, port: int, sets: tuple[str, ...] = ()) -> str:
    """What a command prints: the URI of what it made. Its metrics are at ``port`` meanwhile."""
    overrides = [f"--set={override}" for override in sets]
    done = subprocess.run(
        [sys.executable, "-m", "clipmill", *command, *overrides],
        env=os.environ | {METRICS_VARIABLE: f"{HOST}:{port}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]


def train(folder: Path, port: int) -> dict[str, str]:
    """From scenes to a model a task; their URIs."""
    config = SceneConfig(size=64)
    names = ("pairs", "captioning", "nyu", "ade20k", "classes")
    pairs, captioning, nyu, ade20k, classes = (folder / name for name in names)
    write_caption_folder(config, range(1000), pairs, "alt")
    write_caption_folder(config, range(1000, 1100), captioning, "rich")
    write_nyu(config, range(1100, 1160), nyu, "train")
    write_nyu(config, range(1160, 1168), nyu, "test")
    write_ade20k(config, range(1200, 1260), ade20k, "training")
    write_ade20k(config, range(1260, 1268), ade20k, "validation")
    write_class_folder(config, range(1300, 1360), classes, "val")
    for i in range(40):
        (pairs / f"bad{i}.jpg").write_bytes(b"" if i % 3 else b"no picture")
        (pairs / f"bad{i}.txt").write_text("a caption")
    store = ("--store", str(folder / "store"))
    # Enough of them that the job outlives a few scrapes.
    many = copies(pairs, folder / "many", times=150)
    made_by("data", "shard", str(many), *store, port=port)
    # Recaptioning counts a shard at a time.
    few, small = copies(pairs, folder / "few", times=4), ("samples_per_shard=32",)
    dataset = made_by("data", "shard", str(few), *store, port=port, sets=small)
    good = made_by("data", "shard", str(captioning), *store, port=port)
    captioner = made_by(
        *("data", "train-captioner", good, *store),
        port=port,
        sets=(*STEPS, "train.steps=60"),
    )
    layer = made_by("data", "recaption", dataset, "--captioner", captioner, port=port)
    encoder = made_by(
        *("pretrain", "clip", dataset, *store, "--captions", "both", "--caption-layer", layer),
        port=port,
        sets=(
            *(*STEPS, "train.steps=200", "train.runtime.peak_flops=1e11"),
            *("validation.every=20", "validation.num_pairs=0"),
            f"validation.zero_shot_dataset={classes / 'val'}",
        ),
    )
    wanted = {"depth": ("depth-tiny", nyu), "segmentation": ("upernet-tiny", ade20k)}
    return {
        task: made_by(
            *("finetune", "--recipe", recipe, "--encoder", encoder, "--data", str(data)),
            *store,
            port=port,
            sets=(*STEPS, "train.steps=60", "train.batch_size=4"),
        )
        for task, (recipe, data) in wanted.items()
    }


def copies(pairs: Path, folder: Path, times: int) -> Path:
    """A folder of each file so many times, by links."""
    folder.mkdir()
    for file in pairs.iterdir():
        for i in range(times):
            os.link(file, folder / f"{i}-{file.name}")
    return folder


def ask(client: Client, first: float, last: float) -> None:
    """Pictures of several sizes and brightnesses, and a bad one now and then, until ``last``.

    From ``first`` on; both as ``time.monotonic()`` tells them.
    """
    generator = np.random.default_rng()
    time.sleep(max(0.0, first - time.monotonic()))
    while time.monotonic() < last:
        side = int(generator.integers(32, 200))
        image_HW3 = generator.integers(0, generator.integers(2, 255), (side, side, 3), np.uint8)
        asked: list[Any] = [b"no picture" if generator.random() < 0.02 else image_HW3]
        try:
            client.dense(str(generator.choice(["depth", "segmentation"])), asked)
        except ServerError:  # a full queue, and the file that is none
            time.sleep(0.2)


def load(models: dict[str, str], folder: Path, ports: dict[str, int]) -> None:
    """A stable endpoint and a canary, asked by three clients and by one, in a rush by thrice."""
    listed = folder / "models.json"
    listed.write_text(json.dumps(models))
    config = ServingConfig(max_queue_size=6)
    with ExitStack() as stack:
        for track, port in ports.items():
            process = ServerProcess(
                {},
                models_file=listed,
                log_path=folder / track,
                http_port=port,
                config=config,
            )
            stack.enter_context(process)
        pool = stack.enter_context(ThreadPoolExecutor(12))
        start = time.monotonic()
        for i in range(12):
            client = Client(f"http://{HOST}:{ports['stable' if i % 4 else 'canary']}")
            first, last = (0.0, LOAD_SECONDS) if i < 4 else RUSH_SECONDS
            pool.submit(ask, client, start + first, start + last)
        for spaces in (1, 2):
            time.sleep(RUSH_SECONDS[1] / 2)
            listed.write_text(json.dumps(models, indent=spaces))  # a change, to the same models


def main() -> int:
    """Run, ask and draw; 1 where a panel without data should have had some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder of the pictures")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    job, ports = free_port(HOST), {"stable": free_port(HOST), "canary": free_port(HOST)}
    missing = set()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prometheus = Prometheus(folder, job, ports)
        with running(prometheus.command):
            start = time.time()
            load(train(folder, job), folder, ports)
            end = time.time()
            for file in sorted((CHART / "files" / "dashboards").glob("*.json")):
                board = json.loads(file.read_text())
                answers = [
                    [line for t in p["targets"] for line in prometheus.lines(t, start, end)]
                    for p in board["panels"]
                ]
                titles = [p["title"] for p in board["panels"]]
                empty = {title for title, a in zip(titles, answers, strict=True) if not a}
                sys.stdout.write(f"{board['title']}: {len(titles)} panels, without data: {empty}\n")
                missing |= empty - NOTHING_HAPPENED
                draw(board, answers, start, output / f"{file.stem.removeprefix('clipmill-')}.png")
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
