from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from server.config import InvalidConfig, ServerConfig
from server.data_roots import (
    DataNotOnServer,
    UnknownData,
    known_location,
    known_split,
    server_location,
    server_split,
)
from zoo.errors import ZooError


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, str]:
    for folder in ("photos/flickr1k/Images", "stamps", "secret"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "photos" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "stamps" / "split.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "photos" / "more.zip", "w") as archive:
        archive.writestr("cats/a.jpg", b"")
    return {
        "photos": str(tmp_path / "photos"),
        "stamps": str(tmp_path / "stamps"),
        "shared": "s3://photos/of/the/team/",
    }


def test_names_are_put_under_their_root(roots: dict[str, str]) -> None:
    assert server_location("flickr:photos/flickr1k", roots) == f"flickr:{roots['photos']}/flickr1k"
    assert server_location("flickr:flickr1k", roots) == f"flickr:{roots['photos']}/flickr1k"
    assert server_location("folder:stamps", roots) == f"folder:{roots['stamps']}"
    assert server_location("scenes:200", roots) == "scenes:200"
    assert server_location("folder:photos/more.zip/cats", roots) == f"folder:{roots['photos']}/more.zip/cats"
    assert server_location("tfrecord:photos/train-*", roots) == f"tfrecord:{roots['photos']}/train-*"
    assert server_split("ordered:800,100", roots) == "ordered:800,100"
    assert server_split("file:stamps/split.json", roots) == f"file:{roots['stamps']}/split.json"


@pytest.mark.parametrize(
    "name",
    ["/etc", "../secret", "photos/../../secret", "~", "./x", "", "a\0b", ".", "photos/out", "out"],
)
def test_nothing_else_on_the_disk_can_be_named(roots: dict[str, str], name: str) -> None:
    for call in (
        lambda: server_location(f"flickr:{name}", roots),
        lambda: server_split(f"file:{name}", roots),
    ):
        with pytest.raises(DataNotOnServer):
            call()


def test_buckets_are_read_only_below_a_root(roots: dict[str, str]) -> None:
    assert server_location("folder:shared/cats", roots) == "folder:s3://photos/of/the/team/cats"
    assert server_location("folder:shared", roots) == "folder:s3://photos/of/the/team"
    assert server_location("folder:s3://photos/of/the/team/x", roots) == "folder:s3://photos/of/the/team/x"
    assert known_location("folder:s3://photos/of/the/team", roots) == "folder:s3://photos/of/the/team"
    for url in (
        "s3://photos/of/the/teams",
        "s3://photos/of/the/team/../other",
        "s3://photos/of/the/team//x",
        "s3://photos",
        "s3://elsewhere/of/the/team",
        "s3://",
    ):
        with pytest.raises(DataNotOnServer, match="no bucket that this server reads"):
            server_location(f"folder:{url}", roots)
        with pytest.raises(DataNotOnServer, match="trained on"):
            known_location(f"folder:{url}", roots)
    with pytest.raises(UnknownData):
        server_split("file:s3://photos/of/the/team/split.json", {"shared": roots["shared"]})


def test_what_is_not_there_is_said_with_what_is(roots: dict[str, str]) -> None:
    with pytest.raises(UnknownData, match="photos, shared, stamps"):
        server_location("flickr:absent", roots)
    with pytest.raises(UnknownData, match="none are configured"):
        server_location("flickr:absent", {})
    with pytest.raises(DataNotOnServer, match="expected kind:name"):
        server_location("photos", roots)


def test_the_configuration_is_read_and_its_faults_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert ServerConfig.read(None) == ServerConfig()
    path.write_text(f"data_roots: {{here: {tmp_path}}}\nmax_running_jobs: 2\n")
    config = ServerConfig.read(path)
    assert (config.data_roots, config.max_running_jobs) == ({"here": str(tmp_path)}, 2)
    path.write_text("")
    assert ServerConfig.read(path) == ServerConfig()
    for text, said in [
        ("max_runing_jobs: 1", "max_runing_jobs.*known keys: .*max_running_jobs"),
        ("max_running_jobs: many", "max_running_jobs"),
        (f"data_roots: {{gone: {tmp_path}/gone}}", "'gone' is no folder"),
        ("a: [", "not YAML"),
        ("- list", "valid dictionary"),
    ]:
        path.write_text(text)
        with pytest.raises(InvalidConfig, match=said):
            ServerConfig.read(path)
    with pytest.raises(ZooError, match="No such file"):
        ServerConfig.read(tmp_path / "absent.yaml")


def test_what_a_manifest_names_counts_only_below_a_root(roots: dict[str, str]) -> None:
    inside = f"flickr:{roots['photos']}/flickr1k"
    assert known_location(inside, roots) == inside
    assert known_location("scenes:count=20", roots) == "scenes:count=20"
    assert known_split(f"file:{roots['stamps']}/split.json", roots) == f"file:{roots['stamps']}/split.json"
    for path in (str(Path(roots["photos"]).parent / "secret"), f"{roots['photos']}/out", "/etc", "", "../x"):
        with pytest.raises(DataNotOnServer, match="trained on"):
            known_location(f"flickr:{path}", roots)
        with pytest.raises(DataNotOnServer):
            known_split(f"file:{path}", roots)
