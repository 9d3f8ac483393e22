"""What a study found, as it lies in the store."""

from dataclasses import asdict, dataclass
from typing import Any

from clipmill.storage import join, read_json
from clipmill.study.config import StudyConfig
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
    """URI of each task's evaluation."""
    metrics: dict[str, dict[str, float]]
    """All metrics by task."""

    def figure(self, task: str) -> float:
        """The task's own metric, in its unit."""
        return self.metrics[task][task_named(task).metric.name]


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
    """Condition by condition, seed by seed."""
    quality: dict[str, CaptionQuality]
    """Of ``real`` captions and of each layer's."""
    seconds: float
    """From the start to the end of what was left to do, by the clock."""

    @property
    def tasks(self) -> list[str]:
        """The tasks' names."""
        return [finetune.task for finetune in self.config.finetunes]

    def figures(self, condition: str, task: str) -> list[float]:
        """A condition's figure for each seed, in the order of the seeds."""
        found = {run.seed: run.figure(task) for run in self.runs if run.condition == condition}
        return [found[seed] for seed in self.config.seeds]

    def to_json(self) -> dict[str, Any]:
        """What ``study.json`` holds."""
        return {
            "format": 1,
            "kind": "study",
            "digest": self.config.digest,
            "config": self.config.to_json(),
            "runs": [asdict(run) for run in self.runs],
            "quality": {name: asdict(found) for name, found in self.quality.items()},
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
        seconds=value["seconds"],
    )
