"""Report on captioned photographs: retrieval on held-out pairs, without labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipmill.config import digest_json
from clipmill.data.captioners import captioner_kind
from clipmill.data.dataset import Dataset
from clipmill.engine.result import read_log
from clipmill.lineage import Parent
from clipmill.models.checkpoint import CheckpointMetadata, read_metadata
from clipmill.models.retrieval import RANKS
from clipmill.report.html.charts import Line, Reference, line_chart
from clipmill.report.html.page import Html, Section, document, paragraph, section, table, tag
from clipmill.report.sections.provenance import environment, provenance_section
from clipmill.report.sections.training import quarantine_section, samples_section, timing_section
from clipmill.stage_records import StageRecord, read_stages
from clipmill.storage import exists, join, open_store, write_bytes, write_json
from clipmill.tasks.evaluation import EvaluationResult, read_evaluation
from clipmill.tasks.zero_shot import read_ranks

WAYS: Final = {"image_to_text": "Image to caption", "text_to_image": "Caption to image"}
_LEVEL: Final = 0.95
_RESAMPLES: Final = 10_000
_NUM_LAST: Final = 5
_LABELS: Final = {"real": "your captions", "both": "both captions"}
_GIVEN: Final = "given encoder"
_SEEN: Final = "given encoder, which may have seen these pairs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Recall at a rank, with its interval."""

    rank: int
    num_hits: int
    total: int

    @property
    def percent(self) -> float:
        """Recall, percent."""
        return 100 * self.num_hits / self.total

    @property
    def chance(self) -> float:
        """Recall of guessing, percent."""
        return 100 * min(self.rank / self.total, 1.0)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % score interval, percent (Wilson 1927)."""
        z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
        share = self.num_hits / self.total
        middle = share + z * z / (2 * self.total)
        half = z * math.sqrt(share * (1 - share) / self.total + (z / (2 * self.total)) ** 2)
        scale = 100 / (1 + z * z / self.total)
        return max((middle - half) * scale, 0.0), min((middle + half) * scale, 100.0)

    @property
    def beats_chance(self) -> bool:
        """True if the interval lies above chance."""
        return self.interval[0] > self.chance


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderRetrieval:
    """An encoder with its retrieval ranks on the held-out pairs."""

    label: str
    evaluation: EvaluationResult
    ranks: Mapping[str, Sequence[int]]
    metadata: CheckpointMetadata | None
    """Metadata of an encoder that this run trained; None for another."""

    def share(self, way: str, rank: int) -> Share:
        """Recall at ``rank``."""
        ranks = self.ranks[way]
        return Share(rank=rank, num_hits=sum(r < rank for r in ranks), total=len(ranks))

    @property
    def beats_chance(self) -> bool:
        """True if recall both ways lies above chance, at the rank that decides."""
        return all(self.share(way, deciding_rank(self.num_pairs)).beats_chance for way in WAYS)

    @property
    def num_pairs(self) -> int:
        """Held-out pairs."""
        return len(self.ranks["text_to_image"])


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalLoss:
    """Contrastive loss at the end of training, against chance."""

    loss: float
    """Mean of the last records, nats."""
    chance: float
    """Loss of guessing within a batch: ln of its size, nats."""
    beats_chance: bool
    """True if the mean lies below chance by more than two of its standard errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Difference in recall of two encoders on the same queries, percentage points."""

    mean: float
    low: float
    high: float

    @property
    def outcome(self) -> str:
        """``better``, ``worse``, or neither."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference that these pairs can show"


def deciding_rank(num_pairs: int) -> int:
    """Return the largest rank at which chance is at most a tenth, or 1."""
    return max((rank for rank in RANKS if 10 * rank <= num_pairs), default=RANKS[0])


def photos_report(
    dataset: str,
    evaluations: Sequence[str],
    store: str,
    *,
    layer: str = "",
    captioner: str = "",
    given: str = "",
    run: str = "",
) -> str:
    """Write ``report.html`` and ``report.json`` under ``store``; return the URI of their folder.

    ``evaluations`` are of encoders that were pretrained on a part of ``dataset``, by retrieval on
    the other part; ``given`` is the same of any other encoder.

    Raises NotFoundError where an artifact is missing.
    """
    opened = Dataset.open(dataset)
    encoders = [_trained(uri) for uri in evaluations]
    encoders += [_given(given, opened)] if given else []
    stages = read_stages(store, run) if run else []
    parents = [Parent(role="dataset", uri=opened.uri, digest=opened.digest)]
    if layer:
        digest = opened.layers[layer].digest
        parents.append(Parent(role="captions", uri=opened.layer_uri(layer), digest=digest))
    parents += [
        Parent(role=f"evaluation of {j.label}", uri=j.evaluation.uri, digest=j.evaluation.digest)
        for j in encoders
    ]
    digest = digest_json([[parent.role, parent.digest] for parent in parents])
    uri = join(open_store(store).uri, "reports", digest[:12])
    known = environment()
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = _Page(opened, encoders, layer, captioner, stages)
    write_bytes(join(uri, "report.html"), page.html(store, known, date).encode())
    write_json(
        join(uri, "report.json"),
        {
            "format": 1,
            "kind": "report",
            "digest": digest,
            "parents": [parent.to_json() for parent in parents],
            "summary": {"verdict": page.headline},
            "verdict": page.headline,
            "results": page.results(),
            "environment": known,
            "date": date,
        },
    )
    return uri


def _trained(uri: str) -> EncoderRetrieval:
    evaluation = read_evaluation(uri)
    metadata = read_metadata(evaluation.model.uri)
    label = _LABELS[metadata.recipe["view"]["captions"]]
    return EncoderRetrieval(
        label=label, evaluation=evaluation, ranks=read_ranks(uri), metadata=metadata
    )


def _given(uri: str, dataset: Dataset) -> EncoderRetrieval:
    evaluation = read_evaluation(uri)
    label = _GIVEN
    if exists(join(evaluation.model.uri, "model.json")):
        parents = read_metadata(evaluation.model.uri).parents
        label = _SEEN if dataset.digest in {parent.digest for parent in parents} else _GIVEN
    return EncoderRetrieval(
        label=label, evaluation=evaluation, ranks=read_ranks(uri), metadata=None
    )


def training_of(metadata: CheckpointMetadata) -> FinalLoss:
    """Return the loss on real captions at the end of pretraining."""
    log = read_log(metadata.uri)
    last = np.array([record[_loss_name(log)] for record in log[-_NUM_LAST:]])
    chance = math.log(metadata.recipe["train"]["batch_size"])
    error = float(last.std(ddof=1)) / math.sqrt(len(last)) if len(last) > 1 else math.inf
    mean = float(last.mean())
    return FinalLoss(loss=mean, chance=chance, beats_chance=mean + 2 * error < chance)


def _loss_name(log: Sequence[Mapping[str, float]]) -> str:
    """Return the log's name of the loss on real captions."""
    return "loss/real" if "loss/real" in log[-1] else "loss"


def recall_difference(
    encoder: EncoderRetrieval, baseline: EncoderRetrieval, *, seed: int = 0
) -> Difference:
    """Compute the difference in recall at the deciding rank, both ways, by bootstrap over pairs."""
    rank = deciding_rank(encoder.num_pairs)

    def hits(encoders: EncoderRetrieval) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = 100 * np.mean(
            [np.asarray(encoders.ranks[way]) < rank for way in WAYS], axis=0
        )
        return mean

    gains = hits(encoder) - hits(baseline)
    picks = np.random.default_rng(seed).integers(len(gains), size=(_RESAMPLES, len(gains)))
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(gains[picks].mean(axis=1), [tail, 1 - tail])
    return Difference(mean=float(gains.mean()), low=float(low), high=float(high))


class _Page:
    def __init__(
        self,
        dataset: Dataset,
        encoders: Sequence[EncoderRetrieval],
        layer: str,
        captioner: str,
        stages: Sequence[StageRecord],
    ) -> None:
        self.dataset, self.layer, self.captioner = dataset, layer, captioner
        self.kind = captioner_kind(captioner)[0] if captioner else ""
        self.encoders, self.stages = encoders, list(stages)
        self.trained = [j for j in encoders if j.metadata is not None]
        self.training = {j.label: training_of(j.metadata) for j in self.trained if j.metadata}
        self.num_held_out = encoders[0].num_pairs
        self.num_train = dataset.num_samples - self.num_held_out
        self.rank = deciding_rank(self.num_held_out)
        self.gain = (
            recall_difference(self.trained[1], self.trained[0]) if len(self.trained) > 1 else None
        )

    @property
    def headline(self) -> str:
        if not any(t.beats_chance for t in self.training.values()):
            return "Training failed: its loss stayed at chance"
        if any(j.beats_chance for j in self.trained):
            return "Better than chance on pairs that training didn't see"
        return f"No better than chance: {self.num_train:,} pairs are too few to train on"

    def html(self, store: str, known: Mapping[str, str], date: str) -> str:
        facts = {
            "Pairs used": f"{self.dataset.num_samples:,}",
            "Left out": f"{sum(self.dataset.quarantine.values()):,}",
            "Trained on": f"{self.num_train:,}",
            "Held out": f"{self.num_held_out:,}",
        }
        header = tag(
            "header",
            paragraph(f"clipmill report on your images · {date}", class_="kicker"),
            tag("h1", self.headline),
            paragraph(
                f"A small CLIP was trained from scratch on {self.num_train:,} of your "
                "image-caption pairs. This page shows how well it matches images and captions of "
                f"the {self.num_held_out:,} pairs that it has not seen.",
                class_="lead",
            ),
            paragraph(self._next(), class_="caveat"),
            tag(
                "dl",
                (tag("div", tag("dt", name), tag("dd", text)) for name, text in facts.items()),
                class_="facts",
            ),
        )
        encoders = {j.label: j.metadata for j in self.trained if j.metadata}
        artifacts = [(f"Encoder of {label}", metadata.uri) for label, metadata in encoders.items()]
        sections = [
            self._retrieval(),
            self._captions(),
            samples_section(self.dataset, self.layer, self.kind),
            self._losses(),
            quarantine_section(self.dataset),
            timing_section(self.stages, ("G", "G+S")),
            provenance_section(artifacts, store, known, date),
        ]
        return document(f"{self.headline} · clipmill report", header, sections)

    def _next(self) -> list[str]:
        start = tag("code", "clipmill pretrain clip --set init=open_clip:NAME/TAG")
        if any(j.beats_chance for j in self.trained):
            works = "CLIPs of practical use see millions of pairs: this one shows that your data "
            works += "and the pipeline work. Next: start from public weights, "
            return [works, start, ", or train longer on more pairs."]
        if not any(t.beats_chance for t in self.training.values()):
            failed = "Guessing within a batch costs the logarithm of its size, and training didn't "
            failed += "get below it. Train for more steps, or check that captions fit their images."
            return [failed]
        learned = "It learned the pairs that it saw, and nothing that carries over to others. Try "
        learned += "more pairs, start from public weights, "
        public = tag("code", "clipmill demo --images DIR --encoder open_clip:NAME/TAG")
        return [learned, start, ", or measure public weights on the same pairs: ", public]

    def _retrieval(self) -> Section:
        tables = [self._table(way, title) for way, title in WAYS.items()]
        rule = paragraph(
            f"R@k is the share of queries whose partner is among the first k of "
            f"{self.num_held_out:,}; guessing reaches k / {self.num_held_out:,}. Intervals are "
            "Wilson's. An encoder is better than chance if the interval of "
            f"R@{self.rank} lies above chance both ways. Ties count against it."
        )
        gain = ""
        if self.gain is not None:
            gain = paragraph(
                f"Adding the captioner's captions: {self.gain.outcome}. R@{self.rank}, both ways "
                f"together, changes by {self.gain.mean:+.1f} points "
                f"[{self.gain.low:+.1f}, {self.gain.high:+.1f}] (paired bootstrap over held-out "
                "pairs)."
            )
        return section("retrieval", "Image-text retrieval", rule, gain, tables)

    def _table(self, way: str, title: str) -> Html:
        rows = []
        for encoders in self.encoders:
            cells = [_cell(encoders.share(way, rank)) for rank in RANKS]
            rows.append([encoders.label, *cells])
        chance = [f"{self.encoders[0].share(way, rank).chance:.1f}\u00a0%" for rank in RANKS]
        rows.append(["guessing", *chance])
        counted = f"Share of the {self.num_held_out:,} queries, with 95 % intervals."
        return tag(
            "div",
            tag("h3", title),
            table(counted, ["Encoder", *(f"R@{rank}" for rank in RANKS)], rows),
        )

    def _captions(self) -> Section:
        if self.layer:
            text = (
                f"A captioner ({self.captioner}) wrote a caption for every image. One encoder "
                "learned from your captions alone, another from both. Both are measured on yours."
            )
        else:
            text = (
                "Recaptioning was skipped: no captioner was given, and the one that the demo "
                "trains knows drawn scenes only. A captioner that knows photographs adds the step: "
            )
        example = "clipmill demo --images DIR --captioner file:FOLDER"
        command = [] if self.layer else [tag("code", example), ", or hf:ORG/NAME, or vlm:URL."]
        return section("captions", "Captions", paragraph(text, command))

    def _losses(self) -> Section:
        ends = [
            paragraph(
                f"Trained on {label}: {final.loss:.2f} at the end, where guessing within a batch "
                f"costs {final.chance:.2f}."
                + ("" if final.beats_chance else " That isn't below chance: this training failed.")
            )
            for label, final in self.training.items()
        ]
        lines = []
        for series, encoders in enumerate(self.trained):
            assert encoders.metadata is not None
            log = read_log(encoders.metadata.uri)
            name = _loss_name(log)
            steps, losses = ([record[key] for record in log] for key in ("step", name))
            short = encoders.metadata.recipe["view"]["captions"]
            lines.append(Line(label=short, x=tuple(steps), y=tuple(losses), series=series))
        chance = next(iter(self.training.values())).chance
        chart = line_chart(
            "Contrastive loss on your captions",
            "training pairs, nats",
            lines,
            x_name="updates",
            reference=Reference(label="guessing", y=chance),
        )
        return section("losses", "Losses", ends, tag("div", chart, class_="charts"))

    def results(self) -> dict[str, Any]:
        """Return the page's numbers as JSON values."""
        return {
            "num_samples": self.dataset.num_samples,
            "num_held_out": self.num_held_out,
            "quarantine": dict(self.dataset.quarantine),
            "retrieval": {
                j.label: {
                    "beats_chance": j.beats_chance,
                    **{
                        f"{way}_r{rank}": {
                            "percent": share.percent,
                            "chance": share.chance,
                            "interval": list(share.interval),
                        }
                        for way in WAYS
                        for rank in RANKS
                        for share in [j.share(way, rank)]
                    },
                }
                for j in self.encoders
            },
            "training": {label: asdict(final) for label, final in self.training.items()},
            "gain": asdict(self.gain) if self.gain else None,
            "trained": {j.label: j.evaluation.model.uri for j in self.trained},
            "stages": [asdict(stage) for stage in self.stages],
        }


def _cell(share: Share) -> Html:
    low, high = share.interval
    value = f"{share.percent:.1f}\u00a0%"
    bounds = tag(
        "small", f"[{low:.1f},\u00a0{high:.1f}]", class_="soft", style="white-space: nowrap"
    )
    return tag("td", value, tag("br"), bounds)
