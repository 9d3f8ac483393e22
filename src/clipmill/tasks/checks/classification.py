"""ImageNet's layout: the same classes in both splits, pictures that can be decoded."""

from functools import partial
from pathlib import Path

from clipmill.data.classes import ClassFolder
from clipmill.stage_records import Report
from clipmill.tasks.checks.findings import Findings


def check_classification(folder: Path, findings: Findings, report: Report) -> None:
    """Decode every picture of both splits."""
    classes: dict[str, tuple[str, ...]] = {}
    for split in ("train", "val"):
        data = findings.attempt("layout", partial(ClassFolder.open, folder, split))
        if data is None:
            continue
        findings.num_samples[split] = len(data)
        classes[split] = data.classes
        for number in set(range(len(data.classes))) - set(data.labels):
            findings.note("class-without-pictures", f"{split}/{data.classes[number]}")
        for i in range(len(data)):
            findings.attempt("unreadable-image", partial(data.image, i))
            report(i + 1, len(data), f"{split} looked at")
    for name in sorted(set(classes.get("val", ())) - set(classes.get("train", ()))):
        findings.fault("class-not-trained", f"val/{name} isn't in train")
    for name in sorted(set(classes.get("train", ())) - set(classes.get("val", ()))):
        if "val" in classes:
            findings.fault("class-not-judged", f"train/{name} isn't in val")
