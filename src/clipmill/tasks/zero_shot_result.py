"""What judging a CLIP leaves in the store: an evaluation like that of a task model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from clipmill.digest import digest_json, sha256_bytes
from clipmill.storage import Parent, exists, join, write_json
from clipmill.tasks.zero_shot_config import RetrievalConfig, ZeroShotConfig

_RESULT = "evaluation.json"
ConfigT = TypeVar("ConfigT", ZeroShotConfig, RetrievalConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultPlace:
    """Where a result goes, and what it was found from."""

    uri: str
    """Under the store, by the digest."""
    digest: str
    """Of what was judged, on what and how."""
    task: str
    """``zero-shot`` or ``retrieval``."""
    recipe: Mapping[str, object]
    """The config's JSON."""
    parents: tuple[Parent, ...]
    """The model and the data."""


def result_place(
    store: str, task: str, config: ConfigT, parents: Sequence[Parent], file: str = ""
) -> ResultPlace:
    """The place of a result; ``file`` is a local file whose content decides it too."""
    # What the model is, is said by its parent; how fast it runs doesn't matter.
    clip = replace(config.clip, model="", weights="", seed=0, batch_size=0, num_threads=0)
    judged = replace(config, clip=clip).to_json()
    content = sha256_bytes(Path(file).read_bytes()) if file and Path(file).is_file() else ""
    digest = digest_json([task, judged, content, sorted([p.role, p.digest] for p in parents)])
    return ResultPlace(
        uri=join(store, "evaluations", digest[:12]),
        digest=digest,
        task=task,
        recipe=config.to_json(),
        parents=tuple(parents),
    )


def is_judged(place: ResultPlace) -> bool:
    """Whether the result is there."""
    return exists(join(place.uri, _RESULT))


def write_result(
    place: ResultPlace, metrics: Mapping[str, float], summary: Mapping[str, str]
) -> str:
    """Write the evaluation, and return its URI."""
    write_json(
        join(place.uri, _RESULT),
        {
            "format": 1,
            "kind": "evaluation",
            "digest": place.digest,
            "task": place.task,
            "recipe": place.recipe,
            "metrics": dict(metrics),
            "num_samples": 0,
            "parents": [p.to_json() for p in place.parents],
            "summary": dict(summary),
        },
    )
    return place.uri
