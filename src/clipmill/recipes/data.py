"""Data recipes: sources, shards, scores, selections, exports."""

from dataclasses import replace

from clipmill.data.duplicates import ExactDuplicateFilter, NearDuplicateFilter
from clipmill.data.export import ExportConfig
from clipmill.data.filters import (
    AspectRatioFilter,
    CaptionLengthFilter,
    ClipScoreFilter,
    ClipTopFractionFilter,
    ConceptBalanceFilter,
    ImageSizeFilter,
    LanguageFilter,
)
from clipmill.data.scoring.score import ScoreConfig
from clipmill.data.scoring.scorers import (
    ClipScoreConfig,
    ConceptScoreConfig,
    ImageScoreConfig,
    TextScoreConfig,
)
from clipmill.data.select import CaptionSelectionConfig, SelectConfig, filter_steps
from clipmill.data.shards.plan import ShardConfig
from clipmill.scenes.source import ScenesSourceConfig, TaskName


def scenes_tiny() -> ScenesSourceConfig:
    """Procedural scenes enough for the demo, at 64 px, near enough to tell what stands there.

    Those with labels are larger, as ADE20K's and NYUv2's images are.

    Source: ours.
    Command: ``clipmill data generate-scenes --recipe scenes-tiny --store URI``
    """
    return ScenesSourceConfig(
        num_pairs=4096,
        num_captioner_pairs=3072,
        num_labeled=512,
        num_test=1024,
        max_distance_m=3.3,
        min_object_size_m=0.75,
        labeled_size=128,
        labeled_objects=(1, 4),
    )


def scenes_all_tasks() -> ScenesSourceConfig:
    """The same with labels for all four tasks.

    Source: ours, derived from :func:`scenes_tiny`.
    Command: ``clipmill data generate-scenes --recipe scenes-all-tasks --store URI``
    """
    tasks: tuple[TaskName, ...] = ("classification", "detection", "segmentation", "depth")
    return replace(scenes_tiny(), tasks=tasks)


def shards() -> ShardConfig:
    """Shards of a web-sized dataset: a thousand samples each.

    Source: ours.
    """
    return ShardConfig(min_side=16)


def shards_tiny() -> ShardConfig:
    """Small shards, so that the demo has several.

    Source: ours, derived from :func:`shards`.
    """
    return ShardConfig(samples_per_shard=256, min_side=16)


def export() -> ExportConfig:
    """Plain WebDataset tars of a thousand samples, one caption each.

    Source: ours.
    """
    return ExportConfig()


_BASIC = (
    LanguageFilter(language="en"),
    CaptionLengthFilter(min_words=3, min_characters=6),
    ImageSizeFilter(min_side=200),
    AspectRatioFilter(max_aspect=3.0),
)


def score_basic() -> ScoreConfig:
    """Sizes, hashes, lengths and languages: all that needs no network.

    Source: what DataComp's basic filtering reads (Gadre et al. 2023), and hashes.
    Command: ``clipmill data score DATASET --recipe score-basic``
    """
    return ScoreConfig(image=ImageScoreConfig(), text=TextScoreConfig())


def score_clip_l14() -> ScoreConfig:
    """Similarity of images and captions by OpenAI's ViT-L/14.

    Source: DataComp's score (Gadre et al. 2023), OpenAI's ViT-L/14.
    Command: ``clipmill data score DATASET --recipe score-clip-l14``
    Hardware and hours: not run.
    """
    return ScoreConfig(clip=ClipScoreConfig(model="open_clip:ViT-L-14/openai", precision="bf16"))


def score_clip() -> ScoreConfig:
    """Similarity of images and captions by a CLIP of ours, named with ``--model``.

    Source: ours.
    Command: ``clipmill data score DATASET --recipe score-clip --model URI``
    """
    return ScoreConfig(clip=ClipScoreConfig())


def score_concepts() -> ScoreConfig:
    """Concepts of a list that the real captions name.

    Source: MetaCLIP's substring matching (Xu et al. 2024, "Demystifying CLIP Data").
    Command: ``clipmill data score DATASET --recipe score-concepts --set concepts.concepts=URI``
    """
    return ScoreConfig(captions=("real",), concepts=ConceptScoreConfig())


def select_datacomp_basic() -> SelectConfig:
    """English, over two words and five characters, 200 pixels or more, aspect 3 or less.

    Source: DataComp's basic filtering (Gadre et al. 2023; ``basic_filter`` in
    mlfoundations/datacomp), the language by py3langid instead of fastText.
    Command: ``clipmill data select DATASET --recipe select-datacomp-basic``
    """
    return SelectConfig(name="datacomp-basic", filters=filter_steps(*_BASIC))


def select_tiny() -> SelectConfig:
    """No caption under three words, no image twice: what small images can be judged by.

    Source: ours, derived from :func:`select_datacomp_basic`.
    Command: ``clipmill data select DATASET --recipe select-tiny``
    """
    return SelectConfig(
        name="tiny",
        filters=filter_steps(CaptionLengthFilter(min_words=3), ExactDuplicateFilter()),
    )


def select_clip_top30() -> SelectConfig:
    """The 30 % with the highest CLIP score.

    Source: DataComp's CLIP score filtering (Gadre et al. 2023; ``clip_score`` by L/14).
    Command: ``clipmill data select DATASET --recipe select-clip-top30``
    """
    return SelectConfig(
        name="clip-top30", filters=filter_steps(ClipTopFractionFilter(fraction=0.3))
    )


def select_laion2b() -> SelectConfig:
    """English, with a CLIP score of 0.28 or more by ViT-B/32.

    Source: DataComp's LAION-2B filtering (``laion2b`` in mlfoundations/datacomp), the language by
    py3langid instead of gcld3.
    Command: ``clipmill data select DATASET --recipe select-laion2b``
    """
    return SelectConfig(
        name="laion2b",
        filters=filter_steps(LanguageFilter(language="en"), ClipScoreFilter(threshold=0.28)),
    )


def select_metaclip() -> SelectConfig:
    """No concept much oftener than 20,000 times.

    Source: MetaCLIP's 400 M set (Xu et al. 2024, "Demystifying CLIP Data", algorithm 1).
    Command: ``clipmill data select DATASET --recipe select-metaclip``
    """
    return SelectConfig(
        name="metaclip", filters=filter_steps(ConceptBalanceFilter(max_count=20_000))
    )


def select_best_captions() -> SelectConfig:
    """All samples, each with the caption that scores best.

    Source: ours; the plain form of :func:`select_mixed_captions`.
    Command: ``clipmill data select DATASET --recipe select-best-captions``
    """
    return SelectConfig(
        name="best-captions", caption_selection=CaptionSelectionConfig(strategy="best")
    )


def select_mixed_captions() -> SelectConfig:
    """Real captions where they score in the top 30 %, else synthetic ones that score as high.

    Source: Nguyen et al. 2023, "Improving Multimodal Datasets with Image Captioning", figure 2:
    synthetic captions for what would be discarded, under the same threshold.
    Command: ``clipmill data select DATASET --recipe select-mixed-captions``
    """
    return SelectConfig(
        name="mixed-captions",
        caption_selection=CaptionSelectionConfig(
            strategy="mix", fraction=0.3, threshold_synthetic_too=True
        ),
    )


def select_deduplicated() -> SelectConfig:
    """One of each image, the largest, and DataComp's basic filtering.

    Source: ours, derived from :func:`select_datacomp_basic`.
    Command: ``clipmill data select DATASET --recipe select-deduplicated``
    """
    return replace(
        select_datacomp_basic(),
        name="deduplicated",
        filters=filter_steps(*_BASIC, ExactDuplicateFilter(), NearDuplicateFilter()),
    )
