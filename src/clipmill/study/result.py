"""What a study found, as it lies in the store."""

from dataclasses import asdict, dataclass
from typing import Any

from clipmill.errors import ArtifactError
from clipmill.storage import join, read_artifact_file
from clipmill.study.config import StudyConfig, TableName
from clipmill.study.findings import Findings, StudyRun, by_task
from clipmill.study.scene_captions import Truth

RESULT = "study.json"
_FORMAT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionQuality:
    """How good one kind of caption is, over all pictures."""

    truth: Truth | None
    """None where nobody knows what is there."""
    clip_score: float | None
    """Mean cosine of picture and caption by the judge's CLIP, times 100; None without a judge."""
    num_words: float
    """Mean length, words."""
    num_different: int
    """Different captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSample:
    """A picture and all that is said of it."""

    image_base64: str
    """Its file, in base64."""
    captions: dict[str, str]
    """By kind, ``real`` and layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one encoder, FLOPs."""

    pretraining: float
    """Forward and backward passes of all seen samples."""
    captioning: float
    """Writing a caption of each picture once, where the study's captioner wrote them."""

    @property
    def total(self) -> float:
        """Both."""
        return self.pretraining + self.captioning


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPart:
    """What one command made of a study: all of it, unless parts were joined."""

    command: str
    """The command, of the last start; empty where a library call made it."""
    digest: str
    """Of its config."""
    environment: dict[str, str]
    """Versions and machine."""
    seconds: float
    """Of all starts, by the clock; what other studies had made before took none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """Every run of a study."""

    uri: str
    """Where it lies; where its parts lie, if they were joined."""
    config: StudyConfig
    """What was asked."""
    runs: tuple[StudyRun, ...]
    """Seed by seed, condition by condition."""
    num_pairs: int
    """Pictures to pretrain on."""
    quality: dict[str, CaptionQuality]
    """Of ``real`` captions and of each layer's."""
    samples: tuple[CaptionSample, ...]
    """A few pictures with every kind of caption."""
    attention: dict[str, dict[str, Any]]
    """By condition, as :func:`clipmill.analysis.attention.attention_json` has it."""
    costs: dict[str, Cost]
    """Of each condition that learns from captions."""
    parts: tuple[StudyPart, ...]
    """How it was made."""
    retold: tuple[str, ...] = ()
    """Kinds of captions that some of the joined parts have in other words than ``quality`` tells:
    a captioner that each trained itself, on processors that round differently."""

    @property
    def judged(self) -> Findings:
        """What the study is about: the caption sources, or else all."""
        return self.findings("sources" if self.config.table("sources") else None)

    def findings(self, table: TableName | None = None) -> Findings:
        """The runs of a table's conditions; or of all, by what every table asks for."""
        config = self.config
        # A teacher may be a condition of no table.
        conditions = [c for c in config.conditions if (table in c.tables if table else c.tables)]
        tables = {t for c in conditions for t in c.tables} if table is None else {table}
        return Findings(
            conditions=tuple(c.name for c in conditions),
            transfers=by_task(
                {
                    name: transfer
                    for name, transfer in config.transfers.items()
                    if all(name in config.transfers_of(t) for t in tables)
                }
            ),
            seeds=tuple(s for s in config.seeds if all(s in config.seeds_of(t) for t in tables)),
            runs=self.runs,
            over={c.name: c.over for c in conditions if c.over},
        )

    def to_json(self) -> dict[str, Any]:
        """What ``study.json`` holds."""
        return {
            "format": _FORMAT,
            "kind": "study",
            "digest": self.config.digest,
            "config": self.config.to_json(),
            "runs": [asdict(run) for run in self.runs],
            "num_pairs": self.num_pairs,
            "quality": {name: asdict(found) for name, found in self.quality.items()},
            "samples": [asdict(sample) for sample in self.samples],
            "attention": self.attention,
            "costs": {name: asdict(cost) for name, cost in self.costs.items()},
            "parts": [asdict(part) for part in self.parts],
            "parents": [],
        }


def read_study(uri: str) -> StudyResult:
    """The result at ``uri``.

    Raises:
        NotFoundError: nothing lies there.
        ArtifactError: what lies there was written by another version of clipmill.
    """
    value = read_artifact_file(uri, RESULT, "clipmill study captions")
    if value["format"] != _FORMAT:
        raise ArtifactError(
            f"{join(uri, RESULT)} is of format {value['format']}",
            expected=f"format {_FORMAT}",
            action="remove it and run the study's command again, which keeps what is made",
        )
    return StudyResult(
        uri=uri,
        config=StudyConfig.from_json(value["config"]),
        runs=tuple(StudyRun(**run) for run in value["runs"]),
        num_pairs=value["num_pairs"],
        quality={name: _quality(found) for name, found in value["quality"].items()},
        samples=tuple(CaptionSample(**sample) for sample in value["samples"]),
        attention=value["attention"],
        costs={name: Cost(**cost) for name, cost in value["costs"].items()},
        parts=tuple(StudyPart(**part) for part in value["parts"]),
    )


def _quality(value: dict[str, Any]) -> CaptionQuality:
    truth = value["truth"]
    return CaptionQuality(**(value | {"truth": Truth(**truth) if truth else None}))
