"""Datasets: scenes and shards, captioners and captions, scores, selections and exports."""

from dataclasses import replace

from clipmill.data.captioners import (
    CaptionersConfig,
    ChatClientConfig,
    GenerateConfig,
    HuggingFaceConfig,
    RewriteConfig,
    VlmConfig,
)
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
    ScoreRangeFilter,
)
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.scoring.embeddings import HeadScoreConfig
from clipmill.data.scoring.relevance import RelevanceScoreConfig
from clipmill.data.scoring.score import ScoreConfig
from clipmill.data.scoring.scorers import (
    ClipScoreConfig,
    ConceptScoreConfig,
    ImageScoreConfig,
    TextScoreConfig,
)
from clipmill.data.select import CaptionSelectionConfig, SelectConfig, filter_steps
from clipmill.data.semantic_duplicates import SemanticDuplicateFilter
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.transforms.augmentation import RandomResizedCropConfig
from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.models.config import ClipConfig, CocaConfig, TextConfig, VisionConfig
from clipmill.pretrain.config import CocaTrainConfig
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


def score_embedding() -> ScoreConfig:
    """Embeddings of the images by a CLIP, for heads and semantic deduplication.

    Source: ours. LAION's heads read those of OpenAI's ViT-L/14.
    Command: ``clipmill data score DATASET --recipe score-embedding --model ADDRESS``
    """
    return ScoreConfig(embedding=ClipScoreConfig())


def score_relevance() -> ScoreConfig:
    """Relevance of each caption to its image, by a vision-language model at a chat endpoint.

    Source: ours, in the manner of judges that answer with a number.
    Command: ``clipmill data score DATASET --recipe score-relevance
    --set relevance.url=http://HOST:8000/v1 --set relevance.vlm.model=NAME``
    Hardware and hours: not run with a public model.
    """
    return ScoreConfig(relevance=RelevanceScoreConfig())


def score_aesthetic() -> ScoreConfig:
    """Aesthetic score of the images, about 1 to 10, by a head of LAION.

    Source: LAION-Aesthetics predictor V2 (improved-aesthetic-predictor), or V1's linear head.
    Command: ``clipmill data score DATASET --recipe score-aesthetic --set head.file=URI``
    Hardware and hours: not run with the public weights.
    """
    return ScoreConfig(head=HeadScoreConfig(name="aesthetic"))


def score_nsfw() -> ScoreConfig:
    """Probability that an image isn't safe for work, by a head of LAION.

    Source: LAION's CLIP-based-NSFW-Detector, as PyTorch weights.
    Command: ``clipmill data score DATASET --recipe score-nsfw --set head.file=URI``
    Hardware and hours: not run with the public weights.
    """
    return ScoreConfig(head=HeadScoreConfig(name="nsfw"))


def score_watermark() -> ScoreConfig:
    """Probability of a watermark, by a head that you trained on embeddings.

    Source: ours, for linear heads and stacks of linear layers.
    Command: ``clipmill data score DATASET --recipe score-watermark --set head.file=URI``
    Hardware and hours: not run.
    """
    return ScoreConfig(head=HeadScoreConfig(name="watermark", output="sigmoid"))


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


def select_semdedup() -> SelectConfig:
    """One of the images that a CLIP embeds nearly alike.

    Source: SemDeDup (Abbas et al. 2023); epsilon is ours.
    Command: ``clipmill data select DATASET --recipe select-semdedup``
    """
    return SelectConfig(
        name="semdedup",
        filters=filter_steps(ExactDuplicateFilter(), SemanticDuplicateFilter(epsilon=0.05)),
    )


def select_curated() -> SelectConfig:
    """DataComp's basic filtering, safe and pleasing images, and one of those nearly alike.

    Source: ours, derived from :func:`select_datacomp_basic`; 5 is the threshold of
    LAION-Aesthetics, 0.5 that of LAION's NSFW detector.
    Command: ``clipmill data select DATASET --recipe select-curated``
    Hardware and hours: not run.
    """
    return SelectConfig(
        name="curated",
        filters=filter_steps(
            *_BASIC,
            ScoreRangeFilter(layer="score/nsfw", column="nsfw", max_score=0.5),
            ScoreRangeFilter(layer="score/aesthetic", column="aesthetic", min_score=5.0),
            ExactDuplicateFilter(),
            SemanticDuplicateFilter(
                epsilon=0.05, keep_best_by="score", scores="score/aesthetic", column="aesthetic"
            ),
        ),
    )


def coca_vit_l14() -> CocaTrainConfig:
    """CoCa ViT-L/14 fine-tuned on a captioning set, as open_clip did on COCO captions.

    Source: open_clip, ``coca_ViT-L-14`` and the fine-tuning command in its README.
    Command: ``torchrun --nproc-per-node 8 -m clipmill data train-captioner --recipe coca-vit-l14``
    Hardware and hours: not run.
    """
    return CocaTrainConfig(
        model=CocaConfig(
            clip=ClipConfig(
                embed_dim=768,
                vision=VisionConfig(image_size=224, patch_size=14, width=1024, layers=24),
                text=TextConfig(context_length=76, width=768, heads=12, layers=12),
            ),
            decoder_layers=12,
            num_queries=256,
        ),
        contrastive_weight=0.0,
        captioning_weight=1.0,
        train=TrainConfig(
            steps=4_500,
            batch_size=128,
            schedule=ScheduleConfig(lr=1e-5, min_lr=0.0, warmup_steps=1_000),
            optimizer=AdamWConfig(betas=(0.9, 0.98), weight_decay=0.1),
            precision="bf16",
            checkpoint_every=500,
        ),
    )


def coca_tiny() -> CocaTrainConfig:
    """A CoCa of 1.5 M parameters at 64 px, from scratch on well-captioned scenes.

    Source: ours, derived from :func:`coca_vit_l14`.
    Command: ``clipmill data train-captioner --recipe coca-tiny ...``
    Hardware and time: see docs/hardware.md.
    """
    full = coca_vit_l14()
    return replace(
        full,
        model=CocaConfig(
            clip=ClipConfig(
                embed_dim=128,
                vision=VisionConfig(image_size=64, timm_model="test_byobnet"),
                text=TextConfig(context_length=18, vocab_size=2048, width=128, heads=4, layers=1),
            ),
            decoder_layers=1,
            # Deep features: those of a finer map tell colors well and shapes hardly.
            token_stride=32,
        ),
        random_resized_crop=RandomResizedCropConfig(scale=(0.9, 1.0), ratio=(0.9, 1.1)),
        dataloader=DataLoaderConfig(num_workers=0),
        train=replace(
            full.train,
            steps=600,
            batch_size=64,
            schedule=ScheduleConfig(lr=2e-3, min_lr=1e-5, warmup_steps=20),
            optimizer=AdamWConfig(betas=(0.9, 0.98), weight_decay=0.05, clip_norm=1.0),
            precision="fp32",
            checkpoint_every=200,
            log_every=10,
            num_threads=2,
        ),
    )


def recaption_beam() -> CaptionersConfig:
    """open_clip's beam search, at its defaults.

    Source: open_clip, ``CoCa.generate``.
    Hardware and hours: not run.
    """
    return CaptionersConfig()


def recaption_coca() -> CaptionersConfig:
    """Five captions an image from a CoCa, by nucleus sampling.

    Source: MobileCLIP (Vasu et al. 2024), whose DataCompDR has five captions an image from
    open_clip's CoCa ViT-L/14; the sampling parameters are ours.
    Command: ``clipmill data recaption DATASET --captioner
    open_clip:coca_ViT-L-14/mscoco_finetuned_laion2b_s13b_b90k --recipe recaption-coca``
    Hardware and hours: not run.
    """
    return CaptionersConfig(
        generate=GenerateConfig(method="top_p", top_p=0.9, num_captions=5), batch_size=128
    )


def recaption_blip() -> CaptionersConfig:
    """BLIP's captions: three beams, as its authors evaluate it on COCO captions.

    Source: BLIP (Li et al. 2022), the captioning configuration of its code: 3 beams, lengths up to
    20 tokens, the prompt "a picture of ".
    Command: ``clipmill data recaption DATASET --captioner
    hf:Salesforce/blip-image-captioning-base --recipe recaption-blip``
    Hardware and hours: not run.
    """
    return CaptionersConfig(
        huggingface=HuggingFaceConfig(num_beams=3, max_new_tokens=20, prompt="a picture of")
    )


def recaption_git() -> CaptionersConfig:
    """GIT's captions by beam search.

    Source: ours, for the models of GIT (Wang et al. 2022), which take no prompt.
    Command: ``clipmill data recaption DATASET --captioner
    hf:microsoft/git-base-coco --recipe recaption-git``
    Hardware and hours: not run.
    """
    return CaptionersConfig(huggingface=HuggingFaceConfig(num_beams=4, max_new_tokens=30))


def recaption_vlm_vecap() -> CaptionersConfig:
    """A vision-language model describes the image, and keeps what the real caption knows.

    Source: VeCLIP (Lai et al. 2023). There one model describes the image and another fuses that
    with the real caption; here one that can do both is asked once, in words of ours.
    Command: ``clipmill data recaption DATASET --captioner vlm:http://HOST:8000/v1
    --recipe recaption-vlm-vecap --set vlm.model=NAME``
    Hardware and hours: not run.
    """
    return CaptionersConfig(
        vlm=VlmConfig(
            prompt=(
                "This image was found on a web page with the text below. Describe what the image "
                "shows in one or two plain sentences of at most 40 words. Where the text names "
                "something that can be seen, such as a place, a person, a product or a species, "
                "use that name. Leave out whatever the image doesn't show, and don't mention the "
                "text.\n\nText: {caption}"
            ),
            max_tokens=96,
            temperature=0.2,
        ),
        endpoint=ChatClientConfig(concurrency=32),
        batch_size=256,
    )


def rewrite_laclip() -> CaptionersConfig:
    """Four rewrites of each caption by a language model that doesn't see the image.

    Source: LaCLIP (Fan et al. 2023): rewrites in the manner of a few examples, one of which each
    training step draws at random; four rewrites a caption as in its released data. The examples
    are ours.
    Command: ``clipmill data recaption DATASET --captioner rewrite:http://HOST:8000/v1
    --recipe rewrite-laclip --set rewrite.model=NAME``
    Hardware and hours: not run.
    """
    return CaptionersConfig(
        rewrite=RewriteConfig(
            system="You rewrite image captions. You answer with the new caption alone.",
            prompt=(
                "Rewrite the last caption in the manner of the examples: other words and another "
                "order, the same facts.\n\n"
                "Caption: old wooden boat on lake at sunset stock photo\n"
                "Rewrite: At dusk, a weathered rowing boat made of wood rests on a calm lake.\n\n"
                "Caption: my dog Rex playing fetch\n"
                "Rewrite: Rex, a dog, runs after a ball that was thrown for him.\n\n"
                "Caption: {caption}\n"
                "Rewrite:"
            ),
            num_captions=4,
            max_tokens=77,
            temperature=0.9,
        ),
        endpoint=ChatClientConfig(concurrency=64),
        batch_size=512,
    )


def recaption_tiny() -> CaptionersConfig:
    """Greedy captions on two CPU cores.

    Source: ours, derived from :func:`recaption_beam`.
    """
    return CaptionersConfig(
        generate=GenerateConfig(method="top_k", top_k=1, max_tokens=17),
        batch_size=128,
        num_threads=2,
    )
