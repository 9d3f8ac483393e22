"""Configs that clipmill 0.1 stored are read under the names of today."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from clipmill.config import Config, current_path
from clipmill.data.captioners.config import CaptionersConfig
from clipmill.data.export import ExportConfig
from clipmill.data.import_layer import ImportConfig
from clipmill.data.loading.view import ViewConfig
from clipmill.data.scoring.score import ScoreConfig
from clipmill.data.select import SelectConfig
from clipmill.data.shards.plan import ShardConfig, ShardPlan
from clipmill.engine.config import RuntimeConfig, TrainConfig
from clipmill.errors import ArtifactError, ConfigError
from clipmill.pretrain.config import (
    CocaTrainConfig,
    MaePretrainConfig,
    PretrainConfig,
    SupervisedConfig,
    TeacherConfig,
)
from clipmill.scenes.geometry import SceneConfig
from clipmill.scenes.source import ScenesSourceConfig
from clipmill.study.config import StudyConfig
from clipmill.study.result import read_study
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.sweep import SweepConfig
from clipmill.tasks.zero_shot import RetrievalConfig, ZeroShotConfig
from clipmill.version import clipmill_version

ROOT = Path(__file__).resolve().parent.parent
STORED = json.loads((Path(__file__).parent / "configs_of_0_1.json").read_text())
"""Name: the class in 0.1 (commit 820afa2), and what its ``to_json`` gave."""
RENAMED_CLASSES = {"CaptionerConfig": "CocaTrainConfig", "RecaptionConfig": "CaptionersConfig"}
KINDS = {
    kind.__name__: kind
    for kind in (
        CaptionersConfig,
        CocaTrainConfig,
        ExportConfig,
        FinetuneConfig,
        ImportConfig,
        MaePretrainConfig,
        PretrainConfig,
        RetrievalConfig,
        SceneConfig,
        ScenesSourceConfig,
        ScoreConfig,
        SelectConfig,
        ShardConfig,
        ShardPlan,
        StudyConfig,
        SupervisedConfig,
        SweepConfig,
        TeacherConfig,
        ViewConfig,
        ZeroShotConfig,
    )
}
RENAMED_CHOICES = {
    "chosen": "selected",
    "listing": "metadata",
    "rise-and-fall": "triangular",
}


def leaves(value):
    """All values in plain JSON, without their names and the fields that are no more."""
    if isinstance(value, dict):
        kept = [item for name, item in value.items() if name not in RuntimeConfig.REMOVED_FIELDS]
        return [leaf for item in kept for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [RENAMED_CHOICES.get(value, value)]


@pytest.mark.parametrize("name", STORED)
def test_every_value_is_read(name):
    old_class, stored = STORED[name]
    config = KINDS[RENAMED_CLASSES.get(old_class, old_class)].from_json(stored)
    # The config may have fields that 0.1 lacked.
    assert Counter(map(repr, leaves(stored))) <= Counter(map(repr, leaves(config.to_json())))
    assert type(config).from_json(config.to_json()) == config


def test_a_field_that_is_no_more_says_what_replaces_it():
    config = TrainConfig(steps=1, batch_size=1)
    with pytest.raises(ConfigError, match="tensorboard is not a field") as caught:
        config.override(["runtime.tensorboard=board"])
    assert caught.value.action == "use --tracking tensorboard:FOLDER instead, since clipmill 0.2"


def test_every_kind_is_covered():
    assert {RENAMED_CLASSES.get(old, old) for old, _ in STORED.values()} == set(KINDS)


def test_paths_in_a_sweep_are_todays():
    config = SweepConfig.from_json(STORED["sweep-upernet-miniature"][1])
    assert set(config.grid) == {"model.drop_path", "train.schedule.lr"}
    assert config.config_for_rung(next(config.grid_points()), 0).train.schedule.lr
    assert current_path(config.finetune, "train.micro_batches") == "train.grad_accum_steps"
    assert current_path(config.finetune, "no.such.field") == "no.such.field"


def test_the_recorded_studies_are_read(tmp_path):
    with tarfile.open(ROOT / "docs" / "study" / "parts.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    parts = list((tmp_path / "parts").iterdir())
    assert len(parts) == 10
    for part in parts:
        stored = json.loads((part / "study.json").read_text())
        assert stored["parts"][0]["environment"]["clipmill"] == "0.1.0"
        result = read_study(str(part))
        assert len(result.runs) == len(stored["runs"]) > 0
        assert len(result.config.conditions) == len(stored["config"]["conditions"])


def test_a_config_of_an_unknown_version_is_refused_in_one_sentence():
    stored = {**STORED["view"][1], "fields_of_tomorrow": 1}
    with pytest.raises(ArtifactError) as caught:
        ViewConfig.from_stored(stored, "out/x")
    said = (
        f"clipmill {clipmill_version()} can't read the config of out/x: fields_of_tomorrow is not"
    )
    assert str(caught.value).startswith(said)


def test_renamed_fields_are_fields():
    subclasses = [Config]
    for kind in subclasses:
        subclasses += kind.__subclasses__()
    renamed = 0
    for kind in subclasses[1:]:
        names = set(getattr(kind, "__dataclass_fields__", ()))
        renamed += len(kind.RENAMED_FIELDS)
        if "RENAMED_FIELDS" in vars(kind):
            assert set(kind.RENAMED_FIELDS.values()) <= names, kind
            assert not set(kind.RENAMED_FIELDS) & names, kind
    assert renamed > 60
