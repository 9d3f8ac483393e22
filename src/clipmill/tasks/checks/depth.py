"""NYUv2's layout: lists of files that are there, depth that can be millimetres."""

from functools import partial
from pathlib import Path

from clipmill.data.labelled import NyuFolder
from clipmill.stage_records import Report
from clipmill.tasks.checks.findings import Findings
from clipmill.tasks.depth import MAX_DEPTH_METRES


def check_depth(folder: Path, findings: Findings, report: Report) -> None:
    """Look at every image and depth map of both lists."""
    for split in ("train", "test"):
        data = findings.attempt("layout", partial(NyuFolder.open, folder, split))
        if data is None:
            continue
        findings.num_samples[split] = len(data)
        for i in range(len(data)):
            _check_pair(data, i, findings)
            report(i + 1, len(data), f"{split} looked at")


def _check_pair(data: NyuFolder, index: int, findings: Findings) -> None:
    name = str(data.labels[index])
    depth = findings.attempt("depth", lambda: data.depth_HW(index))
    image = findings.attempt("unreadable-image", lambda: data.image_HW3(index))
    if depth is None or image is None:
        return
    if depth.shape != image.shape[:2]:
        findings.fault("depth-of-another-size", f"{name}: {depth.shape}, image {image.shape[:2]}")
    if not (depth > 0).any():
        findings.note("no-depth-known", name)
    elif (depth > MAX_DEPTH_METRES).mean() > 0.5:
        findings.note("mostly-out-of-range", f"{name}: most is farther than {MAX_DEPTH_METRES} m")
