"""Semantic deduplication of scenes with known duplicates, against a plain NumPy script.

One in 13 scenes has a near-copy: re-encoded as JPEG of quality 30, at half size, or cropped by
5 % on each side. Precision is the fraction of dropped images that have a copy among the kept;
recall the fraction of copies whose pair lost an image. The peer reads the same layer, holds all
embeddings in memory, and takes the full matrix of each cluster, as the code of the paper does.
Run: ``python benchmarks/semantic_duplicates.py --model ADDRESS [--count 20000]``.
"""

import argparse
import io
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.layers import read_layer
from clipmill.data.scoring.score import ScoreConfig, score
from clipmill.data.scoring.scorers import ClipScoreConfig
from clipmill.data.select import SelectConfig, filter_steps, select
from clipmill.data.semantic_duplicates import SemanticDuplicateFilter
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.recipes.data import scenes_tiny
from clipmill.scenes import draw

KINDS = ("jpeg-q30", "half-size", "crop")
EPSILONS = (0.01, 0.005, 0.003, 0.002, 0.001, 0.0005)


def main(model: str, count: int) -> None:
    """Print a table of thresholds, and the ratio of times."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        os.environ["CLIPMILL_CACHE"] = str(folder / "cache")
        num_copies = write_pictures(folder / "pictures", count)
        shards = ShardConfig()
        uri = write_dataset(shards, f"folder:{folder / 'pictures'}", str(folder / "store"))
        start = time.perf_counter()
        config = ScoreConfig(embedding=ClipScoreConfig(model=model), captions=("real",))
        (layer,) = score(config, uri, report=lambda *_: None)
        dataset = Dataset.open(uri)
        seconds = time.perf_counter() - start
        print(f"{dataset.num_samples:,} images, {num_copies:,} copies, embedded in {seconds:.0f} s")
        names = picture_names(dataset)
        for epsilon in EPSILONS:
            rule = SemanticDuplicateFilter(epsilon=epsilon)
            started = time.perf_counter()
            selected = select(
                SelectConfig(name="semdedup", filters=filter_steps(rule)),
                uri,
                report=lambda *_: None,
            )
            ours = time.perf_counter() - started
            keep = kept(Dataset.open(uri), selected)
            started = time.perf_counter()
            theirs = by_numpy(dataset, layer, epsilon)
            peer = time.perf_counter() - started
            assert (keep == theirs).mean() > 0.999, (keep != theirs).sum()
            precision, recall, by_kind = quality(names, keep)
            shares = ", ".join(f"{kind} {share:.3f}" for kind, share in by_kind.items())
            print(
                f"epsilon {epsilon}: {(~keep).sum():,} dropped, precision {precision:.4f}, recall "
                f"{recall:.4f} ({shares}); ours {ours:.2f} s, NumPy {peer:.2f} s, ratio "
                f"{peer / ours:.2f}, {(keep != theirs).sum()} rows differ"
            )
            probing = replace(rule, num_probes=2)
            selected = select(
                SelectConfig(name="semdedup", filters=filter_steps(probing)),
                uri,
                report=lambda *_: None,
            )
            keep = kept(Dataset.open(uri), selected)
            precision, recall, _ = quality(names, keep)
            print(f"  with 2 probes: precision {precision:.4f}, recall {recall:.4f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of all: {peak:,.0f} MiB")


def write_pictures(folder: Path, count: int) -> int:
    """Write scenes and copies, ``count`` together; return the number of copies."""
    folder.mkdir(parents=True)
    config = replace(scenes_tiny().scene, size=96, supersample=1)
    num_copies = count // 14
    for index in range(count - num_copies):
        scene = draw(config, index)
        image = Image.fromarray(scene.image_HW3)
        caption = next(iter(scene.captions.values()))
        write(folder / f"{index:06d}-original", image, 90, caption)
        if index < num_copies:
            kind = KINDS[index % len(KINDS)]
            copy = image
            if kind == "half-size":
                copy = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
            elif kind == "crop":
                edge = round(0.05 * image.width)
                copy = image.crop((edge, edge, image.width - edge, image.height - edge))
            quality = 30 if kind == "jpeg-q30" else 90
            write(folder / f"{index:06d}-{kind}", copy, quality, caption)
    return num_copies


def write(stem: Path, image: Image.Image, quality: int, caption: str) -> None:
    """Write a pair of files."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    stem.with_suffix(".jpg").write_bytes(data.getvalue())
    stem.with_suffix(".txt").write_text(caption)


def picture_names(dataset: Dataset) -> list[str]:
    """Return ``INDEX-KIND`` of each sample."""
    from clipmill.data.shards.read import read_records

    return [
        Path(record.origin).stem
        for index in range(len(dataset.shards))
        for record in read_records(dataset, index, cache_folder())
    ]


def kept(dataset: Dataset, layer: str) -> NDArray[np.bool_]:
    """Return which rows a selection keeps."""
    tables = [read_layer(dataset, layer, i, cache_folder()) for i in range(len(dataset.shards))]
    return np.concatenate([table["keep"].to_numpy() for table in tables])


def by_numpy(dataset: Dataset, layer: str, epsilon: float) -> NDArray[np.bool_]:
    """Return which rows a script in memory keeps: k-means, then a matrix for each cluster."""
    from clipmill.data.duplicates import tie_breaker

    files = sorted(Path(dataset.layer_uri(layer)).glob("*.parquet"))
    tables = [pq.read_table(file) for file in files]
    rows = [np.stack(table["image"].to_numpy()) for table in tables]
    uids = [uid for table in tables for uid in table["uid"].to_pylist()]
    unit_ND = np.concatenate(rows).astype(np.float32)
    unit_ND /= np.linalg.norm(unit_ND, axis=1, keepdims=True)
    # The same rows in the same order as ours, so that the clusters are the same.
    order = np.argsort(np.array([tie_breaker(uid) for uid in uids], np.uint64))
    num_clusters = round(len(unit_ND) ** 0.5)
    training_ND = unit_ND[order[: 128 * num_clusters]]
    centroids_KD = training_ND[:num_clusters]
    for _ in range(20):
        label = (training_ND @ centroids_KD.T).argmax(1)
        sums_KD = np.stack([training_ND[label == k].sum(0) for k in range(num_clusters)])
        centroids_KD = sums_KD / np.linalg.norm(sums_KD, axis=1, keepdims=True)
    cluster = (unit_ND @ centroids_KD.T).argmax(1)
    nearest = (unit_ND.astype(np.float64) * centroids_KD[cluster]).sum(1).round(6)
    keep = np.ones(len(unit_ND), bool)
    place = np.argsort(order)
    for number in range(num_clusters):
        members = np.flatnonzero(cluster == number)
        members = members[np.lexsort((place[members], nearest[members]))]
        matrix = np.triu(unit_ND[members] @ unit_ND[members].T, k=1)
        keep[members[matrix.max(0, initial=0) > 1 - epsilon]] = False
    return keep


def quality(names: list[str], keep: NDArray[np.bool_]) -> tuple[float, float, dict[str, float]]:
    """Return precision and recall, and recall by kind of copy."""
    scenes: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        scenes.setdefault(name.partition("-")[0], []).append(row)
    pairs = [rows for rows in scenes.values() if len(rows) == 2]
    resolved = {id(rows): keep[rows].sum() <= 1 for rows in pairs}
    correct = sum(keep[rows].sum() == 1 for rows in pairs)
    by_kind: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for rows in pairs:
        kind = next(names[row].partition("-")[2] for row in rows if "original" not in names[row])
        by_kind[kind].append(bool(resolved[id(rows)]))
    return (
        correct / max(1, int((~keep).sum())),
        float(np.mean(list(resolved.values()))),
        {kind: float(np.mean(values)) for kind, values in by_kind.items()},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="address of a CLIP")
    parser.add_argument("--count", type=int, default=20_000)
    arguments = parser.parse_args()
    main(arguments.model, arguments.count)
