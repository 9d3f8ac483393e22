"""How an export lies in its tars: what open_clip and WebDataset read."""

import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clipmill.data.shard_records import SampleRecord
from clipmill.digest import canonical_json


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedSample:
    """One sample with the captions it goes out with."""

    record: SampleRecord
    image: bytes
    """The image file."""
    captions: dict[str, list[str]]
    """All that the view has, by kind: ``real``, or the name of a layer."""
    texts: list[str]
    """Those that it's written with, a copy of the sample each."""


def write_export_tar(path: Path, samples: Iterable[ExportedSample]) -> int:
    """Write a tar whose bytes depend on the samples alone; how many samples it then has."""
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            uid = sample.record.uid
            value = {
                "uid": uid,
                "width": sample.record.width,
                "height": sample.record.height,
                "origin": sample.record.origin,
                "captions": sample.captions,
            }
            for number, text in enumerate(sample.texts):
                key = uid if len(sample.texts) == 1 else f"{uid}-{number}"
                _add(tar, f"{key}{sample.record.suffix}", sample.image)
                _add(tar, f"{key}.txt", text.encode())
                _add(tar, f"{key}.json", canonical_json(value).encode())
                count += 1
    return count


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # A fresh TarInfo has zero times, no owner and mode 0644.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
