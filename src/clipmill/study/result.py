"""What a study found, as it lies in the store."""

from dataclasses import asdict, dataclass
from typing import Any

from clipmill.storage import join, read_json
from clipmill.study.config import StudyConfig
from clipmill.study.statistics import Gain, paired_gain
from clipmill.tasks.contract import Metric
from clipmill.tasks.registry import task_named

RESULT = "study.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRun:
    """One condition with one seed."""

    condition: str
    """Its name."""
    seed: int
    """Of weights and order."""
    encoder: str
    """URI of what was pretrained."""
    evaluations: dict[str, str]
    """URI of the evaluation by each transfer's name."""
    metrics: dict[str, dict[str, float]]
    """All metrics, likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionQuality:
    """How good one kind of caption is, over all pictures."""

    true_share: float
    """Pictures whose caption names a colour or an object and none that isn't there, percent."""
    num_words: float
    """Mean length, words."""
    num_different: int
    """Different captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """Every run of a study."""

    uri: str
    """Where it lies."""
    config: StudyConfig
    """What was asked."""
    runs: tuple[StudyRun, ...]
    """Seed by seed, condition by condition."""
    quality: dict[str, CaptionQuality]
    """Of ``real`` captions and of each layer's."""
    attention: dict[str, dict[str, Any]]
    """By condition, as :func:`clipmill.analysis.attention.attention_json` has it."""
    seconds: float
    """From the start to the end of what was left to do, by the clock."""

    def metric(self, transfer: str) -> Metric:
        """The figure that a transfer is judged by."""
        return task_named(self.config.transfers[transfer].task).metric

    def figures(self, condition: str, transfer: str) -> list[float]:
        """A condition's figure for each seed, in its metric's unit and the order of the seeds."""
        name = self.metric(transfer).name
        found = {
            run.seed: run.metrics[transfer][name] for run in self.runs if run.condition == condition
        }
        return [found[seed] for seed in self.config.seeds]

    def gain(self, condition: str, over: str, transfer: str) -> Gain:
        """How much better a condition is than another, paired by seed."""
        metric = self.metric(transfer)
        own, theirs = self.figures(condition, transfer), self.figures(over, transfer)
        return paired_gain([metric.gain(a, b) for a, b in zip(own, theirs, strict=True)], theirs)

    def to_json(self) -> dict[str, Any]:
        """What ``study.json`` holds."""
        return {
            "format": 1,
            "kind": "study",
            "digest": self.config.digest,
            "config": self.config.to_json(),
            "runs": [asdict(run) for run in self.runs],
            "quality": {name: asdict(found) for name, found in self.quality.items()},
            "attention": self.attention,
            "seconds": self.seconds,
            "parents": [],
        }


def read_study(uri: str) -> StudyResult:
    """The result at ``uri``."""
    value = read_json(join(uri, RESULT))
    return StudyResult(
        uri=uri,
        config=StudyConfig.from_json(value["config"]),
        runs=tuple(StudyRun(**run) for run in value["runs"]),
        quality={name: CaptionQuality(**found) for name, found in value["quality"].items()},
        attention=value["attention"],
        seconds=value["seconds"],
    )
