"""A study of a team's own data, by one process and by two that train together."""

import subprocess
import sys

import pytest

from clipmill.data.labeled.folder import fetch_folder
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.errors import ConfigError
from clipmill.recipes.registry import get_recipe
from clipmill.scenes.source import LABELS, PAIRS, ScenesSourceConfig, draw_source
from clipmill.stage_records import no_progress
from clipmill.storage import join
from clipmill.study.config import StudyConfig
from clipmill.study.page import study_page
from clipmill.study.result import read_study
from clipmill.study.run import run_study
from clipmill.study.scene_captions import add_scene_layers, draw_captions
from helpers import program_environment
from helpers.study_ranks import NAMES, small_paper

SCENES = ScenesSourceConfig(num_pairs=16, num_captioner_pairs=1, num_labeled=4, num_test=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs with a caption layer, and segmentation's labels: what a team brings."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("team")
        patch.setenv("CLIPMILL_CACHE", str(root / "cache"))
        source = draw_source(SCENES, str(root), report=no_progress)
        folder, parent = fetch_folder(join(source, PAIRS), "source")
        dataset = write_dataset(ShardConfig(), str(folder), str(root), source_parents=(parent,))
        add_scene_layers(dataset, draw_captions(SCENES), ["terse"], report=no_progress)
        yield dataset, join(source, LABELS["segmentation"])


def test_two_ranks_carry_out_what_the_paper_asks_on_given_data(data, tmp_path):
    store = tmp_path / "store"
    run = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = program_environment(
        CLIPMILL_CACHE=str(tmp_path / "cache"),
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",  # a machine may have fewer GPUs than ranks
    )
    done = subprocess.run(
        [sys.executable, *run, "-m", "helpers.study_ranks", str(store), *data],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (found,) = (store / "studies").iterdir()
    result = read_study(str(found))
    assert [run.condition for run in result.runs] == list(NAMES)
    assert result.quality.keys() == {"real", "synthetic"}
    assert {q.truth for q in result.quality.values()} == {None}
    assert result.attention.keys() == {"G", "G+S"}
    assert {cost.captioning for cost in result.costs.values()} == {0.0}
    page = study_page(result)
    assert "45.5" in page  # of the paper, in gray
    # One process finds all of it made.
    made = sorted(p.stat().st_mtime_ns for p in store.rglob("model.json"))
    (found / "study.json").unlink()
    assert read_study(run_study(result.config, str(store), report=no_progress)).runs == result.runs
    assert sorted(p.stat().st_mtime_ns for p in store.rglob("model.json")) == made


def test_what_is_not_given_is_named(data, tmp_path):
    dataset, labels = data
    paper = get_recipe("study-paper", StudyConfig)
    with pytest.raises(
        ConfigError, match=r"user_data\.dataset, user_data\.layers\.synthetic, user_data\.lab"
    ):
        run_study(paper, str(tmp_path), report=no_progress)
    given = [
        f"user_data.dataset={dataset}",
        "user_data.layers.synthetic=captions/none",
        f"user_data.labels.segmentation={labels}",
    ]
    with pytest.raises(ConfigError, match="has no layer 'captions/none'"):
        run_study(small_paper().override(given), str(tmp_path), report=no_progress)


def test_workers_are_not_for_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="workers was 2, under torchrun with 2 ranks"):
        run_study(small_paper(), str(tmp_path), workers=2, report=no_progress)
