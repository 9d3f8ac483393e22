"""Folders and archives packed for a store: labeled data and pairs come back as they were."""

import subprocess
import zipfile

import pytest
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.data.labeled.folder import ImageFolder, fetch_folder
from clipmill.data.pack import pack
from clipmill.data.sources import open_source
from clipmill.errors import ArtifactError, NotFoundError, SourceError
from clipmill.lineage import Parent, lineage
from clipmill.storage import exists, read_bytes, write_json
from helpers.sources import jpeg, read_all


def silent(done, total, words):
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def labeled(tmp_path):
    root = tmp_path / "my data"
    for number, name in enumerate(("cat", "big dog")):
        for split in ("train", "val"):
            path = root / split / name / "ü 1.jpg"
            path.parent.mkdir(parents=True)
            path.write_bytes(jpeg(number))
    (root / ".DS_Store").write_bytes(b"finder")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    return root


def archive(folder, path, members=("my data",)):
    """Another tool's archive of a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for member in sorted(folder.rglob("*")):
                file.write(member, member.relative_to(folder.parent))
    else:
        flags = "czf" if path.suffix in {".gz", ".tgz"} else "cf"
        subprocess.run(["tar", flags, path, "-C", folder.parent, *members], check=True)
    return path


@pytest.mark.parametrize("kind", ["folder", "x.tar", "x.tar.gz", "x.zip", "flat.tar"])
@pytest.mark.parametrize("place", ["local", "s3"])
def test_labeled_data_come_back(labeled, tmp_path, kind, place, request):
    """Equal bytes, whatever they were packed from."""
    if place == "s3":
        request.getfixturevalue("s3")
    store = str(tmp_path / "store") if place == "local" else f"s3://tests/{tmp_path.name}"
    source = labeled
    if kind == "flat.tar":  # as `cd FOLDER; tar cf ../flat.tar .` makes it
        subprocess.run(["tar", "cf", tmp_path / kind, "-C", labeled, "."], check=True)
        source = tmp_path / kind
    elif kind != "folder":
        source = archive(labeled, tmp_path / kind)
    pack(str(source), f"{store}/data.tar", report=silent)
    pack(str(labeled), f"{store}/again.tar", report=silent)
    assert read_bytes(f"{store}/data.tar") == read_bytes(f"{store}/again.tar")
    folder, parent = fetch_folder(f"{store}/data.tar", "data")
    assert parent.uri == f"{store}/data.tar"
    data = ImageFolder.open(folder, "val")
    assert data.classes == ("big dog", "cat")
    assert [path.read_bytes() for path in data.images] == [jpeg(1), jpeg(0)]
    assert not list(folder.rglob(".*"))


def test_packing_again_uploads_nothing(labeled, tmp_path):
    uri = pack(str(labeled), f"{tmp_path}/data.tar", report=silent)
    before = (tmp_path / "data.tar").stat()
    (labeled / "Thumbs.db").write_bytes(b"explorer")
    assert pack(str(labeled), uri, report=silent) == uri
    assert (tmp_path / "data.tar").stat() == before
    # Interrupted between the tar and its digest.
    (tmp_path / "data.tar.sha256").unlink()
    pack(str(labeled), uri, report=silent)
    assert exists(f"{uri}.sha256")


def test_a_plain_tar_is_refused_with_the_command_that_helps(labeled, tmp_path):
    path = archive(labeled, tmp_path / "plain.tar")
    with pytest.raises(NotFoundError) as caught:
        fetch_folder(str(path), "data")
    command = str(caught.value).rpartition("clipmill ")[2].split()
    assert command == ["data", "pack", str(path), str(path)]
    answer = CliRunner().invoke(app, command)
    assert (answer.exit_code, answer.stdout) == (0, f"{path}\n")
    assert (fetch_folder(str(path), "data")[0] / "train" / "cat").is_dir()
    with pytest.raises(NotFoundError, match=f"clipmill data pack FOLDER {tmp_path}/none.tar"):
        fetch_folder(f"{tmp_path}/none.tar", "data")


def pairs(root, layout):
    """Two pairs in a layout, and the part of the spec after the tar."""
    root.mkdir()
    for number in range(2):
        (root / f"{number}.jpg").write_bytes(jpeg(number))
    if layout == "folder":
        for number in range(2):
            (root / f"{number}.txt").write_text(f"caption {number}")
    if layout == "imagefolder":
        lines = [f'{{"file_name": "{i}.jpg", "text": "caption {i}"}}' for i in range(2)]
        (root / "metadata.jsonl").write_text("\n".join(lines))
    if layout == "csv":
        (root / "pairs.csv").write_text("file,text\n0.jpg,caption 0\n1.jpg,caption 1\n")
        return "csv:", "/pairs.csv?image=file&caption=text"
    return "", ""


@pytest.mark.parametrize("layout", ["folder", "imagefolder", "csv"])
@pytest.mark.parametrize("place", ["local", "s3"])
def test_pairs_come_back(tmp_path, layout, place, request):
    if place == "s3":
        request.getfixturevalue("s3")
    store = str(tmp_path / "store") if place == "local" else f"s3://tests/{tmp_path.name}"
    kind, rest = pairs(tmp_path / "pairs", layout)
    uri = pack(str(tmp_path / "pairs"), f"{store}/pairs.tar", report=silent)
    source = open_source(f"{kind}{uri}{rest}")
    assert source.uri == f"{kind}{uri}{rest}"
    found = [entry.load() for entry in read_all(source)]
    captions = [p.caption if isinstance(p.caption, str) else p.caption.decode() for p in found]
    assert captions == ["caption 0", "caption 1"]
    assert [pair.image_bytes for pair in found] == [jpeg(0), jpeg(1)]
    parent = Parent(role="source", uri=source.uri, digest="d")
    value = {"kind": "dataset", "digest": "d", "parents": [parent.to_json()]}
    write_json(f"{tmp_path}/dataset/dataset.json", value)
    assert lineage(f"{tmp_path}/dataset").parents[0].kind == "file"


@pytest.mark.usefixtures("s3")
def test_a_bucket_of_pairs_says_how_to_pack_it(tmp_path):
    for uri in (f"s3://tests/{tmp_path.name}/images", f"csv:s3://tests/{tmp_path.name}/a.csv"):
        with pytest.raises(SourceError, match="clipmill data pack FOLDER"):
            open_source(uri)


def test_what_cannot_be_packed(labeled, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no file"):
        pack(f"{tmp_path}/empty", f"{tmp_path}/a.tar", report=silent)
    with pytest.raises(SourceError, match="neither a folder nor an archive"):
        pack(f"{tmp_path}/none", f"{tmp_path}/a.tar", report=silent)
    with pytest.raises(ArtifactError, match=r"add \.tar"):
        pack(str(labeled), f"{tmp_path}/a", report=silent)
    whole = archive(labeled, tmp_path / "cut.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="can't be unpacked"):
        pack(f"{tmp_path}/cut.tar.gz", f"{tmp_path}/a.tar", report=silent)
    assert not (tmp_path / "a.tar").exists()
