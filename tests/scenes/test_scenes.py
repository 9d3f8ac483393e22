import dataclasses
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from clipmill.errors import ConfigError, StorageError
from clipmill.scenes import (
    CLASSES,
    COLORS,
    MATERIALS,
    OBJECTS,
    Scene,
    SceneConfig,
    SceneObject,
    draw,
    write_ade20k,
    write_caption_folder,
    write_coco,
    write_nyu,
)
from clipmill.scenes import scene as render_module
from clipmill.scenes.geometry import SceneGeometry, sample_geometry
from clipmill.scenes.scene import Subject, alt_text, render
from clipmill.scenes.solids import INTERSECT, NORMAL

CROWDED = SceneConfig(seed=5, min_objects=3, max_objects=6)


@functools.cache
def crowded(index: int) -> Scene:
    return draw(CROWDED, index)


def fingerprint(scene: Scene) -> str:
    arrays = (scene.image_HW3, scene.classes_HW, scene.instances_HW, scene.depth_HW)
    known = hashlib.sha256(repr((scene.objects, scene.captions)).encode())
    for array in arrays:
        known.update(array.tobytes())
    return known.hexdigest()


def test_a_scene_is_the_same_whichever_others_are_drawn() -> None:
    forwards = [fingerprint(draw(CROWDED, i)) for i in range(6)]
    backwards = [fingerprint(draw(CROWDED, i)) for i in reversed(range(6))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 6


def test_a_scene_is_the_same_in_another_process_with_other_threads() -> None:
    code = (
        "from test_scenes import CROWDED, draw, fingerprint; print(fingerprint(draw(CROWDED, 3)))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert printed.stdout.strip() == fingerprint(draw(CROWDED, 3))


def test_seeds_give_other_scenes() -> None:
    other = dataclasses.replace(CROWDED, seed=6)
    assert fingerprint(draw(CROWDED, 0)) != fingerprint(draw(other, 0))


@pytest.mark.parametrize("index", range(4))
def test_another_size_shows_the_same_picture(index: int) -> None:
    small = draw(CROWDED, index)
    # At three times the size, every third pixel's center is a pixel's center of the small one.
    large = draw(dataclasses.replace(CROWDED, size=192), index)
    assert np.mean(large.classes_HW[1::3, 1::3] == small.classes_HW) > 0.999
    same = np.isclose(large.depth_HW[1::3, 1::3], small.depth_HW, atol=1e-4)
    assert same.mean() > 0.999
    pooled = large.image_HW3.reshape(64, 3, 64, 3, 3).mean((1, 3))
    assert np.abs(pooled - small.image_HW3).mean() < 3
    assert [o.name for o in large.objects] == [o.name for o in small.objects]


@pytest.mark.parametrize("size", [32, 57, 1024])
def test_sizes(size: int) -> None:
    scene = draw(SceneConfig(size=size), 2)
    assert scene.image_HW3.shape == (size, size, 3)
    assert scene.image_HW3.dtype == np.uint8
    assert scene.classes_HW.shape == scene.instances_HW.shape == scene.depth_HW.shape
    assert scene.depth_HW.dtype == np.float32


def test_labels_are_those_of_pixel_centers_at_any_supersampling() -> None:
    plain = draw(dataclasses.replace(CROWDED, supersample=1), 1)
    for supersample in (2, 4):
        smooth = draw(dataclasses.replace(CROWDED, supersample=supersample), 1)
        assert np.array_equal(plain.classes_HW, smooth.classes_HW)
        assert np.array_equal(plain.depth_HW, smooth.depth_HW)
        assert np.abs(plain.image_HW3.astype(int) - smooth.image_HW3).mean() < 6


def test_bands_leave_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(CROWDED, 4)
    monkeypatch.setattr(render_module, "_BAND_SAMPLES", 129 * 2 * 5)
    banded = draw(CROWDED, 4)
    assert np.array_equal(whole.instances_HW, banded.instances_HW)
    assert np.abs(whole.image_HW3.astype(int) - banded.image_HW3).max() <= 1


def test_masks_boxes_and_classes_agree() -> None:
    seen = set()
    for index in range(60):
        scene = crowded(index)
        assert scene.depth_HW.min() > 0.5
        assert scene.depth_HW.max() < 10
        assert set(np.unique(scene.classes_HW[scene.instances_HW == 0])) <= {1, 2}
        assert scene.instances_HW.max() == len(scene.objects)
        for k, found in enumerate(scene.objects, start=1):
            mask = scene.instances_HW == k
            assert mask.sum() == found.visible_pixels > 0
            assert set(np.unique(scene.classes_HW[mask])) == {CLASSES.index(found.name) + 1}
            rows, columns = np.nonzero(mask)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert found.box == box
            seen.add((found.name, found.color, found.material))
    for position, names in enumerate((OBJECTS, COLORS, MATERIALS)):
        assert {triple[position] for triple in seen} == set(names)


def test_as_many_objects_as_asked_for() -> None:
    alone = SceneConfig(min_objects=1, max_objects=1)
    assert {len(sample_geometry(alone, i).objects) for i in range(30)} == {1}
    full = SceneConfig(min_objects=8, max_objects=8)
    counts = [len(sample_geometry(full, i).objects) for i in range(30)]
    assert max(counts) == 8
    assert sum(counts) / len(counts) > 6


def test_objects_stand_as_near_and_are_as_large_as_asked_for() -> None:
    near = SceneConfig(max_distance_m=2.6, min_object_size_m=1.0)
    found = [placed for i in range(60) for placed in sample_geometry(near, i).objects]
    assert 2.3 < max(placed.z for placed in found) <= 2.6
    # One in a room that has no other space may have shrunk.
    assert sorted(placed.size for placed in found)[len(found) // 20] >= 1.0


def test_a_room_that_is_full_stays_with_fewer_objects() -> None:
    full = SceneConfig(min_objects=8, max_objects=8, max_distance_m=2.5, min_object_size_m=1.25)
    counts = {len(sample_geometry(full, i).objects) for i in range(30)}
    assert min(counts) >= 1
    assert max(counts) < 8
    scene = draw(full, 0)
    assert all(seen.visible_pixels > 10 for seen in scene.objects)


def rays_of(world: SceneGeometry, size: int) -> np.ndarray:
    """Directions (H, W, 3) through the pixels' centers, of length 1 along the optical axis."""
    ticks = ((np.arange(size) + 0.5) / size * 2 - 1) * world.camera.tan_half
    u, v = np.meshgrid(ticks, -ticks)
    s, c = np.sin(world.camera.pitch), np.cos(world.camera.pitch)
    return np.stack([u, c * v - s, s * v + c], -1)


def test_depth_of_floor_and_spheres_is_that_of_geometry() -> None:
    spheres = 0
    for index in range(40):
        world, scene = sample_geometry(CROWDED, index), crowded(index)
        rays = rays_of(world, CROWDED.size)
        floor = scene.classes_HW == CLASSES.index("floor") + 1
        expected = -world.camera.height / rays[floor][:, 1]
        np.testing.assert_allclose(scene.depth_HW[floor], expected, rtol=1e-4)
        for placed in world.objects:
            k = next(
                (
                    k
                    for k, found in enumerate(scene.objects, start=1)
                    if (found.name, found.color) == (placed.name, placed.color)
                ),
                None,
            )
            if placed.name != "sphere" or k is None:
                continue
            spheres += 1
            radius = placed.size / 2
            away = np.array([0, world.camera.height, 0]) - (placed.x, radius, placed.z)
            ray = rays[scene.instances_HW == k]
            a, b = (ray * ray).sum(-1), ray @ away
            root = np.sqrt(np.maximum(b * b - a * (away @ away - radius * radius), 0))
            depth = scene.depth_HW[scene.instances_HW == k]
            # At the rim, where the ray is tangent, depth is ill-conditioned.
            np.testing.assert_allclose(depth, (-b - root) / a, atol=3e-3)
            ahead = np.array([0, -np.sin(world.camera.pitch), np.cos(world.camera.pitch)])
            assert scene.objects[k - 1].distance_meters == pytest.approx(-(away @ ahead))
    assert spheres > 5


def test_a_sphere_throws_a_shadow_away_from_the_sun() -> None:
    config = SceneConfig(size=96, min_objects=1, max_objects=1)
    shaded = 0
    for index in range(80):
        world = sample_geometry(config, index)
        (placed,) = world.objects
        if placed.name != "sphere":
            continue
        away = dataclasses.replace(placed, x=placed.x + 50)
        bare = render(dataclasses.replace(world, objects=(away,)), 96, 2)
        picture = render(world, 96, 2)
        point = bare.depth_HW[..., None] * rays_of(world, 96) + (0, world.camera.height, 0)
        to_center = np.array([placed.x, placed.size / 2, placed.z]) - point
        along = to_center @ np.array(world.sun)
        miss = np.sqrt((to_center**2).sum(-1) - along**2)
        floor = picture.floor_HW & (picture.object_HW == 0)
        umbra = floor & (along > 0) & (miss < 0.7 * placed.size / 2)
        # Far from the sphere, where it doesn't hide the sky either.
        far = np.hypot(to_center[..., 0], to_center[..., 2]) > 3 * placed.size
        clear = floor & far & ((miss > 1.3 * placed.size) | (along < 0))
        ratio = picture.image_HW3.mean(-1) / bare.image_HW3.mean(-1)
        assert ratio[clear].min() > 0.95
        if umbra.sum() > 10:
            shaded += 1
            assert ratio[umbra].max() < 0.85
    assert shaded > 1


SIZES = {
    "ball": (0.4, 0.25, 0.3),
    "box": (0.3, 0.2, 0.4),
    "frustum": (0.4, 0.1, 0.35),
    "pyramid": (0.4, 0.3),
    "capsule": (0.2, 0.25),
    "torus": (0.35, 0.12),
}


def inside(solid: str, p: np.ndarray) -> np.ndarray:
    """Whether points (..., 3) lie in a solid of SIZES, by its definition."""
    x, y, z = np.moveaxis(p, -1, 0)
    size = SIZES[solid]
    match solid:
        case "ball":
            return (x / size[0]) ** 2 + (y / size[1]) ** 2 + (z / size[2]) ** 2 < 1
        case "box":
            return (abs(x) < size[0]) & (abs(y) < size[1]) & (abs(z) < size[2])
        case "frustum":
            radius = size[0] + (size[1] - size[0]) * (y / size[2] + 1) / 2
            return (abs(y) < size[2]) & (np.hypot(x, z) < radius)
        case "pyramid":
            side = size[0] * (1 - y / size[1]) / 2
            return (abs(y) < size[1]) & (abs(x) < side) & (abs(z) < side)
        case "capsule":
            past = np.maximum(abs(y) - size[1], 0)
            return x**2 + past**2 + z**2 < size[0] ** 2
        case _:
            return (np.hypot(x, z) - size[0]) ** 2 + y**2 < size[1] ** 2


@pytest.mark.parametrize("solid", [*INTERSECT, "cylinder"])
def test_rays_enter_solids_where_they_first_get_inside(
    solid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if solid == "cylinder":
        solid = "frustum"
        monkeypatch.setitem(SIZES, "frustum", (0.3, 0.3, 0.35))
    rng = np.random.default_rng(0)
    origin = rng.normal(size=(600, 3))
    origin *= rng.uniform(1.5, 4, (600, 1)) / np.linalg.norm(origin, axis=1, keepdims=True)
    direction = rng.uniform(-0.6, 0.6, (600, 3)) - origin
    o, d = origin.T.astype(np.float32), direction.T.astype(np.float32)
    t = INTERSECT[solid]((o[0], o[1], o[2]), (d[0], d[1], d[2]), SIZES[solid])
    steps = np.linspace(0, 2, 4001)
    within = inside(solid, origin[:, None] + steps[:, None] * direction[:, None])
    enters = within.any(1)
    first = steps[within.argmax(1)]
    # A ray that grazes the solid may pass between two steps.
    assert not np.isinf(t[enters]).any()
    assert np.mean(np.isinf(t[~enters])) > 0.97
    assert 100 < enters.sum() < 590
    np.testing.assert_allclose(t[enters], first[enters], atol=1.1 * (steps[1] - steps[0]))

    hit = (origin + t[:, None] * direction)[enters]
    normal = NORMAL[solid](hit.T.astype(np.float32), SIZES[solid]).T
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-5)
    assert not inside(solid, hit + 2e-3 * normal).any()
    # Close to an edge a step inwards may leave by the other side.
    assert np.mean(inside(solid, hit - 2e-3 * normal)) > 0.98
    assert np.all((normal * direction[enters]).sum(1) < 1e-3)


def spoken_of(scene: Scene, color: str, name: str) -> tuple[SceneObject, np.ndarray]:
    (k,) = (
        k
        for k, found in enumerate(scene.objects, start=1)
        if (found.color, found.name) == (color, name)
    )
    return scene.objects[k - 1], scene.instances_HW == k


def columns_of(mask: np.ndarray) -> tuple[int, int]:
    columns = np.flatnonzero(mask.any(0))
    return int(columns[0]), int(columns[-1]) + 1


def test_terse_captions_name_what_is_there() -> None:
    one = re.compile(r"an? (\w+) (\w+)")
    for index in range(80):
        scene = crowded(index)
        named = [one.fullmatch(part) for part in scene.captions["terse"].split(" and ")]
        assert 1 <= len(named) <= 2
        for match in named:
            assert match is not None
            assert match[1] in COLORS
            _, mask = spoken_of(scene, match[1], match[2])
            assert mask.sum() >= 8


def test_rich_captions_tell_the_truth() -> None:
    noun = rf"an? ({'|'.join(MATERIALS)}) ({'|'.join(COLORS)}) ({'|'.join(OBJECTS)})"
    placed = re.compile(rf"{noun} stands about (\d+) metres? away")
    related = re.compile(rf"{noun} stands (.+) the (\w+) (\w+), about (\d+) metres? away")
    told: dict[str, int] = {}
    for index in range(80):
        scene = crowded(index)
        world = sample_geometry(CROWDED, index)
        opening, *others = scene.captions["rich"].split("; ")
        assert f"{world.room.wall} wall" in opening
        assert f"{world.room.floor} floor" in opening
        first = placed.search(opening)
        assert first is not None
        clauses = [first, *(related.fullmatch(other) for other in others)]
        for match in clauses:
            assert match is not None
            found, mask = spoken_of(scene, match[2], match[3])
            assert found.material == match[1]
            meters, nearest = int(match[match.lastindex]), scene.depth_HW[mask].min()
            # The distance is that of the middle, which lies behind the nearest point.
            assert nearest - 0.5 < meters < nearest + 1.3 + 0.5
        for match in clauses[1:]:
            assert match is not None
            _, mask = spoken_of(scene, match[2], match[3])
            _, other = spoken_of(scene, match[5], match[6])
            left, right = columns_of(mask)
            other_left, other_right = columns_of(other)
            overlap = left < other_right and other_left < right
            depth = np.median(scene.depth_HW[mask])
            other_depth = np.median(scene.depth_HW[other])
            true = {
                "left of": left + right < other_left + other_right,
                "right of": left + right > other_left + other_right,
                "in front of": overlap and depth < other_depth,
                "behind": overlap and depth > other_depth,
                "nearer than": not overlap and depth < other_depth,
                "farther away than": not overlap and depth > other_depth,
                "next to": abs(depth - other_depth) < 1.2
                and abs(left + right - other_left - other_right) < 2 * 0.09 * 64,
            }
            for relation in match[4].split(" and "):
                assert true[relation], (index, scene.captions["rich"], relation)
                told[relation] = told.get(relation, 0) + 1
    assert set(told) >= {"left of", "right of", "nearer than", "farther away than", "behind"}


def test_half_of_all_alt_texts_say_nothing_true() -> None:
    subjects = [
        Subject(name=name, color=color, material="matte", distance=3, left=0.1, right=0.4)
        for name, color in (("cube", "red"), ("mug", "black"))
    ]
    rng = np.random.default_rng(0)
    texts = [alt_text(subjects, rng.random(4).tolist()) for _ in range(4000)]
    about_a_class = [re.search(r"\b(cube|mug)\b", text) is not None for text in texts]
    assert np.mean(about_a_class) == pytest.approx(0.45, abs=0.03)
    other_colors = "|".join(COLORS)
    wholly_true = [
        about and not re.search(rf"\b({other_colors})\b(?<!red)(?<!black)", text)
        for about, text in zip(about_a_class, texts, strict=True)
    ]
    # Wrongly colored texts may use the other object's color: at most 2 of 14 wrong ones.
    assert 0.27 < np.mean(wholly_true) < 0.36


def test_captions_of_drawn_scenes_are_of_three_qualities() -> None:
    scenes = [crowded(i) for i in range(80)]
    true = [any(o.name in s.captions["alt"].split() for o in s.objects) for s in scenes]
    assert 0.25 < np.mean(true) < 0.65
    lengths = {
        quality: np.mean([len(s.captions[quality].split()) for s in scenes])
        for quality in ("alt", "terse", "rich")
    }
    assert lengths["alt"] < lengths["terse"] < lengths["rich"]


def open_array(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def assert_shows(path: Path, scene: Scene) -> None:
    image = open_array(path).astype(int)
    assert image.shape == scene.image_HW3.shape
    assert np.abs(image - scene.image_HW3).mean() < 3


@pytest.mark.parametrize("quality", ["alt", "terse", "rich"])
def test_caption_folder_reads_back(tmp_path: Path, quality: str) -> None:
    done: list[int] = []
    write_caption_folder(CROWDED, [3, 7], tmp_path, quality, progress=done.append)
    assert done == [1, 2]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["000003.jpg", "000003.txt", "000007.jpg", "000007.txt"]
    for index in (3, 7):
        scene = crowded(index)
        assert (tmp_path / f"{index:06d}.txt").read_text() == scene.captions[quality]
        assert_shows(tmp_path / f"{index:06d}.jpg", scene)


def test_a_second_run_mends_what_a_killed_one_left(tmp_path: Path) -> None:
    write_caption_folder(CROWDED, range(3), tmp_path, "rich")
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "000001.jpg").write_bytes(b"cut")
    (tmp_path / "000002.txt").unlink()
    write_caption_folder(CROWDED, range(3), tmp_path, "rich")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


@pytest.mark.parametrize(
    ("split", "prefix"), [("training", "ADE_train"), ("validation", "ADE_val")]
)
def test_ade20k_reads_back(tmp_path: Path, split: str, prefix: str) -> None:
    write_ade20k(CROWDED, range(3), tmp_path, split)
    rows = (tmp_path / "objectInfo150.txt").read_text().splitlines()[1:]
    assert [row.split("\t") for row in rows] == [[str(k + 1), n] for k, n in enumerate(CLASSES)]
    for index in range(3):
        scene = crowded(index)
        name = f"{prefix}_{index:08d}"
        labels = open_array(tmp_path / "annotations" / split / f"{name}.png")
        assert np.array_equal(labels, scene.classes_HW)
        assert_shows(tmp_path / "images" / split / f"{name}.jpg", scene)


@pytest.mark.parametrize(("split", "root"), [("train", "."), ("test", "official_splits/test")])
def test_nyu_reads_back(tmp_path: Path, split: str, root: str) -> None:
    write_nyu(CROWDED, [0, 1001], tmp_path, split)
    lines = (tmp_path / f"{split}_list.txt").read_text().splitlines()
    assert len(lines) == 2
    for index, line in zip((0, 1001), lines, strict=True):
        scene = crowded(index)
        image, depth, focal = line.split()
        assert_shows(tmp_path / root / image.lstrip("/"), scene)
        millimeters = open_array(tmp_path / root / depth.lstrip("/"))
        assert millimeters.dtype == np.uint16
        np.testing.assert_allclose(millimeters / 1000, scene.depth_HW, atol=5.1e-4)
        half = CROWDED.size / 2
        assert float(focal) == pytest.approx(
            half / sample_geometry(CROWDED, index).camera.tan_half, abs=1e-3
        )


# pycocotools decodes into an array of an old kind.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_reads_back(tmp_path: Path) -> None:
    write_coco(CROWDED, range(4), tmp_path, "val2017")
    coco = COCO(str(tmp_path / "annotations" / "instances_val2017.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(OBJECTS)
    captions = json.loads((tmp_path / "annotations" / "captions_val2017.json").read_text())
    for index in range(4):
        scene = crowded(index)
        assert_shows(tmp_path / "val2017" / coco.loadImgs(index)[0]["file_name"], scene)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[index]))
        assert len(annotations) == len(scene.objects)
        for k, (annotation, found) in enumerate(
            zip(annotations, scene.objects, strict=True), start=1
        ):
            mask = coco.annToMask(annotation)
            assert np.array_equal(mask, scene.instances_HW == k)
            assert annotation["area"] == mask.sum()
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width, y + height) == found.box
            assert OBJECTS[annotation["category_id"] - 1] == found.name
        told = [c["caption"] for c in captions["annotations"] if c["image_id"] == index]
        assert told == [scene.captions["terse"], scene.captions["rich"]]


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 31},
        {"size": 1025},
        {"seed": -1},
        {"min_objects": 0},
        {"min_objects": 3, "max_objects": 2},
        {"max_objects": 9},
        {"supersample": 3},
        {"max_distance_m": 6.0},
        {"min_object_size_m": 0.1},
    ],
)
def test_configs_that_cant_be_drawn_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        SceneConfig(**fields)


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(ConfigError, match="-1"):
        draw(SceneConfig(), -1)


def test_a_folder_that_cant_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        write_caption_folder(SceneConfig(), [0], tmp_path / "file", "alt")
