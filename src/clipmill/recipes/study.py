"""Studies of captions, at the sizes that two cores can answer."""

from dataclasses import replace

from clipmill.recipes.captioner import coca_miniature, recaption_miniature
from clipmill.recipes.clip import clip_miniature
from clipmill.recipes.data import scenes_miniature, shards_miniature
from clipmill.recipes.dense import depth_miniature, upernet_miniature
from clipmill.study.config import COCA, ConditionConfig, StudyConfig
from clipmill.study.scene_captions import DOSES

_SOURCES = (
    ConditionConfig(name="G"),
    ConditionConfig(name="S (rewritten text)", captions="synthetic", layer="rewrite"),
    ConditionConfig(name="S (CoCa)", captions="synthetic", layer=COCA),
    ConditionConfig(name="G+S (CoCa)", captions="both", layer=COCA),
    ConditionConfig(name="rich, true", captions="synthetic", layer="rich"),
)
_DOSED = (
    ConditionConfig(name="terse, true", captions="synthetic", layer="terse", dose=0.0),
    *(
        ConditionConfig(
            name=f"{percent} % wrong",
            captions="synthetic",
            layer=f"wrong-{percent}",
            dose=float(percent),
        )
        for percent in DOSES
    ),
)


def study_captions() -> StudyConfig:
    """Caption sources, and dose and response, five seeds: a night of two cores.

    Source: ours; the question and the sources are those of CLIP-QC, Table 2.
    Command: ``clipmill study captions --store URI --workers 2``
    """
    return StudyConfig(
        scenes=scenes_miniature(),
        shards=shards_miniature(),
        captioner=coca_miniature(),
        recaption=recaption_miniature(),
        pretrain=clip_miniature(),
        finetunes=(upernet_miniature(), depth_miniature()),
        conditions=(*_SOURCES, *_DOSED),
        seeds=(0, 1, 2, 3, 4),
    )


def study_captions_quick() -> StudyConfig:
    """The caption sources of :func:`study_captions`, two seeds.

    Source: ours.
    Command: ``clipmill study captions --recipe study-captions-quick --store URI --workers 2``
    """
    return replace(study_captions(), conditions=_SOURCES, seeds=(0, 1))
