"""Growth: stages at n, 10 n and 100 n samples, by synthetic indexes.

Sharding reads entries without images; selection has scores alone; the loader's shards are one file
under many names. ``--set scale.base=N`` changes n. Costs should grow no faster than the samples,
and memory not at all.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from harness.case import Case, Contender, Run, Sizes
from harness.results import Result
from harness.session import Session

from parts import selection

PER_SHARD = 10_000
FACTORS = (1, 10, 100)
MAX_EXPONENT, MAX_MEMORY_RATIO = 1.1, 1.1
_TABLE, _STORE = "pairs.csv", "store"


def num_samples(sizes: Sizes) -> int:
    """Return the samples of a case."""
    return sizes["base"] * sizes["factor"]


def write_table(folder: Path, sizes: Sizes) -> None:
    """Write a table that names images which aren't there."""
    with (folder / _TABLE).open("w") as file:
        file.write("path,caption\n")
        for i in range(num_samples(sizes)):
            file.write(f"images/{i % 1000:03d}/{i:09d}.jpg,a picture of thing number {i}\n")


def _plan(folder: Path, store: str) -> Any:
    from clipmill.data.shards.plan import ShardConfig, plan_shards

    config = ShardConfig(samples_per_shard=PER_SHARD)
    return plan_shards(config, str(folder / _TABLE), str(folder / store))


def plan(folder: Path, sizes: Sizes, session: Session) -> None:
    """Plan the table."""
    session.answer()
    for number in range(100):
        session.start()
        _plan(folder, f"{_STORE}{number}")
        session.stop(num_samples(sizes))


def shard(folder: Path, sizes: Sizes, session: Session) -> None:
    """Make shards of the planned table: every entry is read, none has an image."""
    from clipmill.data.shards.write import write_shards

    session.answer()
    for number in range(100):
        planned = _plan(folder, f"{_STORE}{number}")
        session.start()
        write_shards(planned, 0, planned.num_shards)
        session.stop(num_samples(sizes))


def sort_names(folder: Path, sizes: Sizes, session: Session) -> None:
    """Bring the names of a folder's files in order, as its listing needs."""
    import numpy as np

    from clipmill.data.sources.files import sorted_records

    del folder
    session.answer()

    def names() -> Iterator[tuple[bytes, bytes]]:
        generator = np.random.default_rng(0)
        for first in range(0, num_samples(sizes), 100_000):
            count = min(100_000, num_samples(sizes) - first)
            yield from ((b"%012d.jpg" % n, b"") for n in generator.integers(0, 10**12, count))

    session.run(lambda: sum(1 for _ in sorted_records(names())))


def find_duplicates(folder: Path, sizes: Sizes, session: Session) -> None:
    """Compare fingerprints of which one in a hundred is another's."""
    import numpy as np

    from clipmill.data.shards import finalize

    del folder
    session.answer()
    count = num_samples(sizes)

    def shards() -> Iterator[Any]:
        generator = np.random.default_rng(0)
        for first in range(0, count, PER_SHARD):
            found = np.empty(min(PER_SHARD, count - first), finalize.FINGERPRINT)
            found["id"] = generator.integers(0, 1 << 63, (len(found), 2))
            found["image"] = generator.integers(0, 1 << 63, (len(found), 2))
            found["image"][::100] = found["image"][0]
            yield found

    def lap() -> float:
        assert len(finalize.find_duplicates(shards(), count).positions) >= count // 200
        return count

    session.run(lap)


def write_scores(folder: Path, sizes: Sizes) -> None:
    """Write a dataset without images, and its scores."""
    selection.write_scores(folder, {"rows": num_samples(sizes), "shard_rows": PER_SHARD})


def select(folder: Path, sizes: Sizes, session: Session) -> None:
    """Apply five filters, as the part ``selection`` does."""
    selection.clipmill(folder, {"rows": num_samples(sizes)}, session)


def write_shards(folder: Path, sizes: Sizes) -> None:
    """Write one shard of small images, and a dataset that lists it under many names."""
    import json

    from clipmill.config import digest_json
    from clipmill.data.dataset import Dataset
    from clipmill.data.shards.plan import ShardConfig
    from clipmill.data.shards.write import write_dataset
    from parts.sharding import write_source

    per_shard = sizes["per_shard"]
    write_source(folder, {"pairs": per_shard})
    config = ShardConfig(samples_per_shard=per_shard)
    uri = write_dataset(config, str(folder / "source"), str(folder / "first"))
    dataset = Dataset.open(uri)
    manifest = json.loads((Path(uri) / "dataset.json").read_text())
    (listed,) = manifest["shards"]
    target = folder / "dataset"
    (target / "shards").mkdir(parents=True)
    shards = []
    for index in range(-(-num_samples(sizes) // per_shard)):
        name = f"{index:07d}.tar"
        for suffix in (".tar", ".json"):
            source = Path(dataset.shard_uri(0)).with_suffix(suffix)
            (target / "shards" / name).with_suffix(suffix).symlink_to(source)
        shards.append(listed | {"name": name})
    manifest |= {"shards": shards, "digest": digest_json(shards)}
    (target / "dataset.json").write_text(json.dumps(manifest))


def first_batch(share: float, folder: Path, sizes: Sizes, session: Session) -> None:
    """Open the dataset and read the first batch from a share of the epoch on, in the process."""
    from clipmill.data.dataset import Dataset
    from clipmill.data.loading.config import DataLoaderConfig
    from clipmill.data.loading.dataloader import PairDataLoader
    from clipmill.data.loading.view import View, ViewConfig
    from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
    from clipmill.models.tokenizer import Tokenizer

    batch_size = 64
    tokenize, transform = Tokenizer(), CropTransform(32, RandomResizedCropConfig())

    def lap() -> float:
        loader = PairDataLoader(
            View(Dataset.open(str(folder / "dataset")), ViewConfig()),
            DataLoaderConfig(num_workers=0),
            batch_size=batch_size,
            transform=transform,
            tokenize=tokenize,
            start_step=int(share * num_samples(sizes)) // batch_size,
            cache=folder / "cache",
        )
        assert len(next(iter(loader)).uids) == batch_size
        return num_samples(sizes)

    lap()
    session.answer()
    session.run(lap)


def read_lineage(folder: Path, sizes: Sizes, session: Session) -> None:
    """Read the dataset's lineage."""
    from clipmill.lineage import lineage

    def lap() -> float:
        assert lineage(str(folder / "dataset")).kind == "dataset"
        return num_samples(sizes)

    lap()
    session.answer()
    session.run(lap)


STAGES: dict[str, tuple[Callable[[Path, Sizes], None] | None, Run]] = {
    "plan a table": (write_table, plan),
    "shard its entries": (write_table, shard),
    "sort a folder's names": (None, sort_names),
    "find duplicates": (None, find_duplicates),
    "select by five filters": (write_scores, select),
    "loader: first batch": (write_shards, partial(first_batch, 0.0)),
    "loader: first batch of a resumed run": (write_shards, partial(first_batch, 0.5)),
    "read a dataset's lineage": (write_shards, read_lineage),
}


def _cases() -> Iterator[Case]:
    for stage, (prepare, run) in STAGES.items():
        for factor in FACTORS:
            options: dict[str, Any] = {"prepare": prepare} if prepare else {}
            yield Case(
                name=f"{stage}, {factor} n",
                unit="samples",
                contenders=(Contender(name="clipmill", run=run),),
                sizes={"base": 100_000, "factor": factor, "per_shard": 1000},
                tiny={"base": 200, "factor": factor, "per_shard": 50},
                rounds=1,
                **options,
            )


CASES = tuple(_cases())


def curves(results: list[Result]) -> dict[str, list[tuple[int, float, float]]]:
    """Return samples, seconds and bytes of memory of each stage, by the number of samples."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for result in results:
        if result.case["part"] == "scale":
            samples = num_samples(result.case["sizes"])
            seconds = result.seconds_each("clipmill") * samples
            stage = result.case["case"].rpartition(", ")[0]
            found.setdefault(stage, []).append((samples, seconds, result.peak_bytes("clipmill")))
    return {stage: sorted(points) for stage, points in found.items()}


def growth_table(results: list[Result]) -> str:
    """Return Markdown: of each stage the exponent of its time, and how memory grows."""
    lines = ["| stage | samples | seconds | peak MB | exponent of time | memory | bars |"]
    lines.append("|---|---|---|---|---|---|---|")
    for stage, points in curves(results).items():
        (n1, t1, m1), (n2, t2, m2) = points[0], points[-1]
        if n1 == n2:
            continue
        exponent, memory = math.log(t2 / t1) / math.log(n2 / n1), m2 / m1
        is_met = exponent <= MAX_EXPONENT and memory <= MAX_MEMORY_RATIO
        cells = [
            stage,
            ", ".join(f"{n:,}" for n, _, _ in points),
            ", ".join(f"{t:.3g}" for _, t, _ in points),
            ", ".join(f"{m / 1e6:.0f}" for _, _, m in points),
            f"{exponent:.2f}",
            f"{memory:.2f}x",
            "met" if is_met else "**missed**",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(results: list[Result], path: Path, caption: str) -> None:
    """Draw time and memory over the number of samples as an SVG file."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for stage, points in curves(results).items():
        samples, seconds, held = zip(*points, strict=True)
        left.loglog(samples, seconds, marker="o", label=stage)
        right.semilogx(samples, [value / 1e6 for value in held], marker="o", label=stage)
    left.set(xlabel="samples", ylabel="seconds", title="Time")
    right.set(xlabel="samples", ylabel="peak memory, MB", title="Memory", ylim=(0, None))
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.supxlabel(caption, fontsize="small")
    figure.savefig(path)
    plt.close(figure)
