"""Every dashboard as a picture, from a real Prometheus that scrapes a short run of the real thing.

    python benchmarks/dashboards.py docs/dashboards

Draws scenes, shards them with bad files among them, trains a captioner, recaptions, pretrains,
fine-tunes, and serves a stable and a canary model under load: some three minutes of two cores.
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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import yaml
from PIL import Image

from clipmill.cluster.monitoring.files import rules
from clipmill.data.scenes.formats import write_caption_folder, write_nyu
from clipmill.data.scenes.world import SceneConfig
from clipmill.errors import ServerError
from clipmill.serve.client import Client
from clipmill.serve.config import ServeConfig
from clipmill.serve.ports import free_port
from clipmill.serve.process import ServerProcess
from clipmill.stages import METRICS_VARIABLE

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

CHART = Path(__file__).resolve().parent.parent / "helm" / "clipmill"
HOST = "127.0.0.1"
_COLUMNS = 3
_LINES = 12
UNITS = {"s": "seconds", "bytes": "bytes", "lengthm": "metres", "short": ""}
"""Grafana's names of units that aren't shares, and ours."""
STEPS = ("train.batch_size=16", "train.log_steps=5", "train.checkpoint_steps=10")
NOTHING_HAPPENED = {
    "Attempts at an endpoint, by outcome, a second",
    "Samples that a loader replaced, a second",
    "Updates left out, by reason, a second",
    "Last value of an evaluation during training",
    "Changes of the file of models, a second",
    "Share of images that a class has, summed, a second",
    "Tokens that an endpoint counted, a second",
}
"""Panels of what this run has none of: faults, other captioners, a segmenter."""


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
        made = rules()
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
        asked = target["expr"].replace("$__rate_interval", "10s").replace("$namespace", ".*")
        fields = {"query": asked, "start": start, "end": end, "step": 2}
        url = f"http://{HOST}:{self.port}/api/v1/query_range?{urllib.parse.urlencode(fields)}"
        with urllib.request.urlopen(url) as answer:  # our own server
            found = json.load(answer)["data"]["result"]
        # The prefix of Grafana's legend.
        quantile = target["legendFormat"].partition(" ")[0] if " " in target["legendFormat"] else ""
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


def train(folder: Path, port: int) -> str:
    """From scenes to a depth model; its URI."""
    config = SceneConfig(size=64)
    pairs, captioning, nyu = (folder / name for name in ("pairs", "captioning", "nyu"))
    write_caption_folder(config, range(400), pairs, "alt")
    write_caption_folder(config, range(400, 500), captioning, "rich")
    write_nyu(config, range(500, 560), nyu, "train")
    write_nyu(config, range(560, 568), nyu, "test")
    for i in range(40):
        (pairs / f"bad{i}.jpg").write_bytes(b"" if i % 3 else b"no picture")
        (pairs / f"bad{i}.txt").write_text("a caption")
    store = ("--store", str(folder / "store"))
    # Enough of them that the job outlives a few scrapes.
    many = copies(pairs, folder / "many", times=30)
    made_by("data", "shard", str(many), *store, port=port)
    # Recaptioning counts a shard at a time.
    small = ("samples_per_shard=32",)
    dataset = made_by("data", "shard", str(pairs), *store, port=port, sets=small)
    good = made_by("data", "shard", str(captioning), *store, port=port)
    captioner = made_by(
        *("data", "train-captioner", good, *store),
        port=port,
        sets=(*STEPS, "train.steps=30"),
    )
    layer = made_by("data", "recaption", dataset, "--captioner", captioner, port=port)
    encoder = made_by(
        *("pretrain", dataset, *store, "--captions", "both", "--layer", layer),
        port=port,
        sets=(*STEPS, "train.steps=60", "train.operation.peak_flops=5e10"),
    )
    return made_by(
        *("finetune", "--recipe", "depth-miniature", "--encoder", encoder, "--data", str(nyu)),
        *store,
        port=port,
        sets=("train.steps=60",),
    )


def copies(pairs: Path, folder: Path, times: int) -> Path:
    """A folder of each file so many times, by links."""
    folder.mkdir()
    for file in pairs.iterdir():
        for i in range(times):
            os.link(file, folder / f"{i}-{file.name}")
    return folder


def ask(client: Client, seconds: float) -> None:
    """Pictures of several sizes and brightnesses, and a bad one now and then, for so long."""
    generator = np.random.default_rng()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        side = int(generator.integers(32, 200))
        image_HW3 = generator.integers(0, generator.integers(2, 255), (side, side, 3), np.uint8)
        with suppress(ServerError):  # a full queue, and the file that is none
            client.dense("depth", [b"no picture" if generator.random() < 0.02 else image_HW3])


def load(model: str, folder: Path, ports: dict[str, int]) -> None:
    """A stable endpoint and a canary, asked by nine and by three clients."""
    config = ServeConfig(max_queue_images=6)
    with (
        ServerProcess(
            {"depth": model}, log_path=folder / "s", http_port=ports["stable"], config=config
        ),
        ServerProcess(
            {"depth": model}, log_path=folder / "c", http_port=ports["canary"], config=config
        ),
        ThreadPoolExecutor(12) as pool,
    ):
        for i in range(12):
            track = "stable" if i % 4 else "canary"
            pool.submit(ask, Client(f"http://{HOST}:{ports[track]}"), 40.0)


def legend(lines: list[dict[str, Any]]) -> list[str]:
    """A name a line: its quantile, and those labels in which the lines differ."""
    labels = {key for line in lines for key in line["metric"]} - {"__name__", "instance", "job"}
    told = [k for k in sorted(labels) if len({line["metric"].get(k) for line in lines}) > 1]
    return [
        " ".join(filter(None, [line["quantile"], *(line["metric"].get(k, "") for k in told)]))
        for line in lines
    ]


def draw(
    board: dict[str, Any], answers: list[list[dict[str, Any]]], start: float, file: Path
) -> None:
    """The dashboard's panels in a grid, with legends and units; seconds since ``start``."""
    panels = board["panels"]
    rows = -(-len(panels) // _COLUMNS)
    size = (5 * _COLUMNS, 2.6 * rows)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=size, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for panel, lines, axis in zip(panels, answers, axes.flat, strict=False):
        axis.set_title(panel["title"], fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
        unit = panel["fieldConfig"]["defaults"]["unit"]
        if unit == "percentunit":
            axis.yaxis.set_major_formatter(PercentFormatter(1))
        else:
            axis.set_ylabel(UNITS[unit], fontsize=7)
        for line, name in list(zip(lines, legend(lines), strict=True))[:_LINES]:
            times, values = np.array(line["values"], float).T
            axis.plot(times - start, values, linewidth=1, label=name or None)
        if any(legend(lines)):
            axis.legend(fontsize=7, loc="best", framealpha=0.6)
        if not lines:
            axis.text(0.5, 0.5, "nothing of the kind happened", ha="center", color="gray")
    figure.suptitle(f"{board['title']}: seconds of the run", fontsize=11)
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    plt.close(figure)
    Image.open(file).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(
        file, optimize=True
    )


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
