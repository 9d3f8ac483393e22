"""Workers killed at random points: ``python -m helpers.workers_drill SOURCE WORK NUM_KILLS SEED``.

A worker shards, captions, scores and exports the pictures of SOURCE. Under WORK one is left alone
first, and the calls and returns that its interpreter sees are counted. Others, one or two at a time
over the same store, are killed with -9 at a random one of these, again and again; one more run ends
the work, whose files are compared. Points so chosen lie on both sides of every write and rename,
however busy the machine is. Prints JSON: how many workers were killed, by how far the work was
then; of how many datasets; and what differed.
"""

import importlib
import json
import os
import random
import shutil
import signal
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from clipmill.data.dataset import Dataset
from clipmill.data.export import ExportConfig, export
from clipmill.data.layers import commit_layer, has_layer_shard, write_layer_shard
from clipmill.data.loading.view import ViewConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.read import read_shard
from clipmill.data.shards.write import write_dataset
from clipmill.data.verify import verify
from clipmill.images import decode_rgb

CAPTIONS, SCORE = "captions/drill", "score/drill"
EXPORT = ExportConfig(
    view=ViewConfig(captions="both", layer=CAPTIONS), captions_per_image="each", samples_per_tar=5
)
# Kills before a dataset is finished: some die while they mend what others left.
MOST_KILLS = 3


def layer_rows(dataset: Dataset, index: int, layer: str, cache: Path) -> pa.Table:
    """A function of the pictures and captions alone, as a captioner's or scorer's answer is."""
    with read_shard(dataset, index, cache) as reader:
        rows = range(len(reader))
        pixels = [decode_rgb(reader.image(row)).getpixel((0, 0)) for row in rows]
        if layer == CAPTIONS:
            said = [[f"{reader.caption(row)}, {pixels[row]}"] for row in rows]
            return pa.table({"uid": reader.uids, "captions": said})
        return pa.table({"uid": reader.uids, "real": [sum(p) / 765 for p in pixels]})


def work(source: str, store: str, cache: Path) -> None:
    """What one worker does, from pictures to an export."""
    uri = write_dataset(ShardConfig(samples_per_shard=4), source, store, num_threads=2)
    dataset = Dataset.open(uri)
    for layer in (CAPTIONS, SCORE):
        for index in range(len(dataset.shards)):
            if not has_layer_shard(dataset, layer, index):
                write_layer_shard(dataset, layer, index, layer_rows(dataset, index, layer, cache))
        dataset = commit_layer(dataset, layer, parents=(), detail={"maker": "drill"})
    export(EXPORT, uri, store, cache)


def start(source: str, store: str, cache: Path, kill_at: int, count_to: Path | None = None) -> int:
    """Run a worker in a process of its own, which dies at event ``kill_at`` if that isn't 0."""
    pid = os.fork()
    if pid:
        return pid
    code, num_events = 1, 0

    def see(*_: object) -> None:
        nonlocal num_events
        num_events += 1
        if num_events == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        if kill_at or count_to:
            threading.setprofile(see)
            sys.setprofile(see)
        work(source, store, cache)
        sys.setprofile(None)
        if count_to:
            seen = {"events": num_events, "modules": sorted(sys.modules)}
            count_to.write_text(json.dumps(seen))
        code = 0
    finally:
        os._exit(code)


def was_killed(pid: int) -> bool:
    """Wait for a worker, and say whether it died; it mustn't have failed by itself."""
    status = os.waitpid(pid, 0)[1]
    if status and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        raise SystemExit(f"a worker that nobody killed ended with status {status}")
    return status != 0


def files(folder: Path) -> dict[str, bytes]:
    """Every file by its relative name, but for what killed writers left under temporary ones."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".clipmill-tmp-")
    }


def stage_of(store: Path) -> str:
    """How far the work in a store has come."""
    for stage, pattern in (
        ("done", "exports/*/export.json"),
        ("export", f"datasets/*/layers/{SCORE}/layer.json"),
        ("score", f"datasets/*/layers/{CAPTIONS}/layer.json"),
        ("captions", "datasets/*/dataset.json"),
    ):
        if list(store.glob(pattern)):
            return stage
    return "shard"


def main(source: str, folder: Path, num_kills: int, seed: int) -> None:
    """Drill, and print what came of it."""
    store, cache = folder / "store", folder / "cache"
    os.environ["TMPDIR"] = str(folder)
    # What a process wrote outlives it without that, and most of the time would go there.
    os.fsync = lambda _: None
    for _ in range(2):
        shutil.rmtree(store, ignore_errors=True)
        assert not was_killed(start(source, str(store), cache, 0, folder / "seen"))
        seen = json.loads((folder / "seen").read_text())
        for name in seen["modules"]:  # or most points would lie in imports
            with suppress(ImportError):
                importlib.import_module(name)
    num_events = seen["events"]
    expected = files(store)
    rng = random.Random(seed)
    kills: Counter[str] = Counter()
    datasets, different = 0, []
    while kills.total() < num_kills:
        shutil.rmtree(store)
        if rng.random() < 0.3:
            shutil.rmtree(cache)
        left = num_events
        for _ in range(rng.randint(1, MOST_KILLS)):
            # Rivals die too, or they'd leave nothing to the next. Early points are likelier, or
            # most datasets would be past their shards.
            points = [1 + int(left * rng.random() ** 2) for _ in range(rng.choice((1, 1, 2)))]
            dead = [was_killed(w) for w in [start(source, str(store), cache, p) for p in points]]
            kills[stage_of(store)] += sum(dead)
            left = max(left - max(points), 1000)
        assert not was_killed(start(source, str(store), cache, 0))
        datasets += 1
        found = files(store)
        different += [n for n in sorted({*found, *expected}) if found.get(n) != expected.get(n)]
        (uri,) = store.glob("datasets/*")
        different += [str(fault) for fault in verify(str(uri)).faults]
    counts = {"num_files": len(expected), "num_events": num_events, "datasets": datasets}
    print(json.dumps({"kills": dict(kills), "different": different, **counts}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
