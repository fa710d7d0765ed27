"""`finetune rank` whole, with backbones whose right order is known.

The photos' red and green are low or high by class, their blue is noise. The backbones are a tiny one with some
channels' kernels 0: `sees-both` (red and green) can tell four classes, `sees-green` two pairs, `sees-blue` none.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.cli.main import app
from finetune.data.sources import open_source
from finetune.rank.candidates import NoBackbones, candidates
from finetune.rank.chart import HEIGHT, WIDTH, Axes, front_of, log_ticks, ticks, write_chart
from finetune.rank.cost import flops_at
from finetune.rank.ranking import NothingRanked, Ranked, Ranking, RankRequest, rank
from finetune.rank.table import COLUMNS, expectation, heading, remarks, table_rows
from finetune.spec import DataConfig
from tests.tiny import TINY, tiny_backbone_version, tiny_tensors
from zoo.cache import BlobCache
from zoo.catalog import Catalog, open_catalog
from zoo.cli.output import print_table, run_cli
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture, Component, Head, Manifest
from zoo.store import open_store
from zoo.tensors import write_safetensors

LEVELS = (30, 220)
PHOTOS = 20  # of each class


def publish(catalog: Catalog, folder: Path, name: str, *, sees: str, size: int = 32, head: bool = False) -> None:
    tensors = tiny_tensors()
    stem = tensors["stem/kernel"].copy()
    for channel, letter in enumerate("rgb"):
        stem[:, :, channel] *= letter in sees
    tensors["stem/kernel"] = stem
    path = folder / f"{sees}.safetensors"
    write_safetensors(path, tensors)
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    components = [Component(name="backbone", digest=digest, bytes=path.stat().st_size, num_tensors=len(tensors))]
    files = {digest: path}
    if head:
        head_path = folder / "head.safetensors"
        write_safetensors(head_path, {"logits/bias": np.zeros(4, np.float32)})
        head_digest = "sha256:" + hashlib.sha256(head_path.read_bytes()).hexdigest()
        components.append(Component(name="head", digest=head_digest, bytes=head_path.stat().st_size, num_tensors=1))
        files[head_digest] = head_path
    manifest = Manifest(
        architecture=TINY,
        input_spec=InputSpec(height=size, width=size),
        components=tuple(components),
        head=Head(kind="classifier") if head else None,
    )
    catalog.publish(name, manifest, files)


def photo(red: int, green: int, chance: np.random.Generator) -> bytes:
    pixels = np.empty((32, 32, 3), np.uint8)
    for channel, level in enumerate((red, green)):
        pixels[:, :, channel] = np.clip(level + chance.normal(0, 8) + chance.normal(0, 2, (32, 32)), 0, 255)
    pixels[:, :, 2] = chance.integers(0, 256, (32, 32))
    with io.BytesIO() as out:
        Image.fromarray(pixels).save(out, "PNG")
        return out.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class: 4 × 20 photos, a class with one, a photo twice, and a file that is none."""
    root, chance = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for red in LEVELS:
        for green in LEVELS:
            folder = root / f"r{red} g{green}"
            folder.mkdir()
            for number in range(PHOTOS):
                (folder / f"{number:02}.png").write_bytes(photo(red, green, chance))
    (root / "lone").mkdir()
    (root / "lone" / "0.png").write_bytes(photo(0, 0, chance))
    first = root / f"r{LEVELS[0]} g{LEVELS[0]}"
    (first / "copy.png").write_bytes((first / "00.png").read_bytes())
    (first / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    return root


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("zoo")
    catalog = Catalog(open_store(f"file://{folder}/store"), BlobCache(folder / "cache"))
    for name, sees in (("sees-blue", "b"), ("sees-both", "rg"), ("sees-green", "g")):
        publish(catalog, folder, name, sees=sees)
    publish(catalog, folder, "child", sees="g", head=True)  # the same backbone, with a head
    publish(catalog, folder, "minute", sees="rg", size=8)  # smaller than its network takes
    return catalog


def ranked(catalog: Catalog, photos: Path, **request: Any) -> Ranking:
    location = f"folder:{photos}"
    asked = {"part": "all", "folds": 3, **request}
    data = DataConfig(location=location, max_bad_share=0.05)
    return rank(catalog, open_source(location), RankRequest(data=data, **asked), on_progress=lambda *_: None)


@pytest.fixture(scope="module")
def ranking(catalog: Catalog, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranking:
    with pytest.MonkeyPatch.context() as patch:  # the tests' own cache comes with each test, later than this
        patch.setenv("MODELZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        return ranked(catalog, photos)


def test_the_order_is_that_of_what_the_backbones_can_see(ranking: Ranking) -> None:
    assert [each.candidate.reference for each in ranking.ranked] == ["sees-both@1", "sees-green@1", "sees-blue@1"]
    probes = [each.scores.probe.mean for each in ranking.ranked]
    neighbours = [each.scores.neighbours.mean for each in ranking.ranked]
    for both, green, nothing in (probes, neighbours):
        assert both > 0.9
        assert 0.36 < green < 0.7
        assert nothing < 0.36
    evidence = [each.log_evidence for each in ranking.ranked]
    assert evidence == sorted(evidence, reverse=True)
    assert [each.tied for each in ranking.ranked] == [True, False, False]
    assert ranking.images == 4 * PHOTOS
    assert ranking.baseline == 0.25
    # One backbone, two versions; the one without a head gives the name.
    assert ranking.ranked[1].candidate.also == ("child@1",)
    # What is left out is said: the broken file, the copy, the class with one photo, the backbone that can't.
    assert [record.id for record in ranking.bad] == [f"r{LEVELS[0]} g{LEVELS[0]}/broken.png"]
    assert ranking.notes == (
        "left out: 1 images whose bytes another image of the sample has, too",
        "left out: 1 class ('lone'), with one image each in the sample",
    )
    assert [one.reference for one in ranking.skipped] == ["minute@1"]
    assert "needs images of at least" in ranking.skipped[0].reason


def test_the_same_request_gives_the_same(ranking: Ranking, catalog: Catalog, photos: Path) -> None:
    again = ranked(catalog, photos, backbones=("sees-green", "sees-green@1"))
    assert len(again.ranked) == 1
    assert again.ranked[0].scores == ranking.ranked[1].scores
    assert again.ranked[0].log_evidence == ranking.ranked[1].log_evidence


def test_costs_are_of_the_version(ranking: Ranking, catalog: Catalog) -> None:
    best = ranking.ranked[0]
    assert best.cost.bytes == catalog.get("sees-both").manifest.components[0].bytes
    assert 0.01 < best.cost.milliseconds < 1000
    assert best.cost.flops is None  # counted for the full width only
    catalog = open_catalog()
    full = tiny_backbone_version(catalog, "full", size=112, architecture=Architecture(name="efficientnet_lite0"))
    flops = flops_at(full)
    assert flops is not None
    assert flops == pytest.approx(814_000_000 / 4, rel=0.01)  # 407 million multiply-adds at 224 × 224 (the paper's)


def test_nothing_to_rank_is_refused_in_words(catalog: Catalog, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingRanked, match=r"none of 1 backbones could be ranked: minute@1: .* at least"):
        ranked(catalog, photos, backbones=("minute",))
    empty = open_catalog(f"file://{tmp_path}/empty")
    with pytest.raises(NoBackbones, match="no version with a backbone to rank in file://"):
        candidates(empty)


def test_damaged_weights_are_skipped_and_the_others_ranked(photos: Path, tmp_path: Path) -> None:
    catalog = open_catalog()
    publish(catalog, tmp_path, "whole", sees="rg")
    publish(catalog, tmp_path, "damaged", sees="b")
    digest = catalog.get("damaged").manifest.components[0].digest.removeprefix("sha256:")
    blob = catalog.store.local_path(f"blobs/sha256/{digest[:2]}/{digest[2:4]}/{digest}")
    assert blob is not None
    blob.chmod(0o644)
    blob.write_bytes(b"\0" * blob.stat().st_size)
    ranking = ranked(catalog, photos)
    assert [each.candidate.reference for each in ranking.ranked] == ["whole@1"]
    assert [one.reference for one in ranking.skipped] == ["damaged@1"]
    assert "sha256" in ranking.skipped[0].reason


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `finetune` in this process: exit code, stdout, stderr."""

    def call(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            run_cli(app, args)
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return call


class TestCommand:
    def test_json_and_chart(self, catalog: Catalog, photos: Path, tmp_path: Path, run: Run) -> None:
        chart = tmp_path / "chart.png"
        args = ("--data", f"folder:{photos}", "--split", "all", "--folds", "3", "--store", catalog.store.url)
        args += ("--backbone", "sees-green", "--backbone", "sees-both", "--backbone", "minute", "--chart", str(chart))
        code, out, err = run("rank", *args, "--set", "data.max_bad_share=0.05", "--format", "json")
        assert code == 0, err
        found = json.loads(out)
        assert [each["reference"] for each in found["backbones"]] == ["sees-both@1", "sees-green@1"]
        assert found["metric"] == "accuracy"
        expected = found["backbones"][0]["expected"]
        assert expected["metric"] == "accuracy"
        assert len(expected["folds"]) == 3
        assert expected["mean"] == pytest.approx(np.mean(expected["folds"]), abs=1e-6)
        assert found["not_covered"]
        assert [one["reference"] for one in found["skipped"]] == ["minute@1"]
        assert "skipped: minute@1: " in err
        assert "next: finetune run --backbone sees-both@1" in err
        with Image.open(chart) as picture:
            assert picture.size == (WIDTH, HEIGHT)

    @pytest.mark.slow
    def test_captions_are_ranked_by_their_words(self, catalog: Catalog, photos: Path, run: Run) -> None:
        lines = []
        for path in sorted(photos.glob("r*/[0-9]*.png")):
            red, green = (int(part[1:]) > 100 for part in path.parent.name.split())
            words = (("bright", "warm", "hot") if red else ("dim", "cool", "cold")) + (
                ("leafy",) if green else ("bare",)
            )
            lines.append({"image": str(path.relative_to(photos)), "captions": [f"a {' '.join(words)} scene"]})
        listed = photos / "captions.jsonl"
        listed.write_text("".join(json.dumps(line) + "\n" for line in lines))
        args = ("--data", f"jsonl:{listed}", "--split", "all", "--folds", "3", "--format", "json")
        args += ("--store", catalog.store.url)
        code, out, err = run("rank", *args, "--backbone", "sees-blue", "--backbone", "sees-both")
        assert code == 0, err
        found = json.loads(out)
        assert (found["by"], found["metric"], found["probe"]) == ("captions", "mean_average_precision", "ridge")
        assert found["classes"] == 8
        assert [each["reference"] for each in found["backbones"]] == ["sees-both@1", "sees-blue@1"]
        assert found["backbones"][0]["linear_probe"]["mean"] > 0.95
        assert found["backbones"][1]["linear_probe"]["mean"] < found["baseline"] + 0.2

    @pytest.mark.slow
    def test_lists_of_classes_are_ranked_by_average_precision(self, catalog: Catalog, photos: Path, run: Run) -> None:
        lines = []
        for path in sorted(photos.glob("r*/[0-9]*.png")):
            names = [part[0] for part in path.parent.name.split() if int(part[1:]) > 100]
            lines.append({"image": str(path.relative_to(photos)), "labels": names})
        listed = photos / "labels.jsonl"
        listed.write_text("".join(json.dumps(line) + "\n" for line in lines))
        args = ("--data", f"jsonl:{listed}", "--split", "all", "--folds", "3", "--format", "json")
        args += ("--store", catalog.store.url)
        code, out, err = run("rank", *args, "--backbone", "sees-green")
        assert code == 0, err
        found = json.loads(out)
        assert (found["by"], found["metric"]) == ("labels", "mean_average_precision")
        assert 0.6 < found["backbones"][0]["linear_probe"]["mean"] < 0.9  # one label told, the other guessed

    @pytest.mark.parametrize(
        ("args", "says", "code"),
        [
            (("--backbone", "nobody"), "nobody", 1),
            (("--by", "captions"), "has no captions", 1),
            (("--chart", "picture.jpg"), "name it FILE.png", 2),
            (("--set", "train.steps=3"), "settings of the data only", 1),
            (("--set", "data.splitt=x"), "did you mean split", 1),
            (("--sample", "12", "--folds", "20"), "few", 1),
        ],
    )
    def test_wrong_usage_is_said(
        self, catalog: Catalog, photos: Path, run: Run, args: tuple[str, ...], says: str, code: int
    ) -> None:
        given = ("rank", "--data", f"folder:{photos}", "--split", "all", "--set", "data.max_bad_share=1")
        given += ("--store", catalog.store.url)
        got, out, err = run(*given, "--backbone", "sees-both", *args)
        assert (got, out) == (code, "")
        assert says in err


class TestText:
    def test_a_row_a_backbone_the_best_first(self, ranking: Ranking, capsys: pytest.CaptureFixture[str]) -> None:
        print_table(COLUMNS, table_rows(ranking))
        lines = [line for line in capsys.readouterr().out.splitlines() if "sees-" in line]
        assert [line.split()[:2] for line in lines] == [
            ["1", "sees-both@1"],
            ["2", "sees-green@1"],
            ["3", "sees-blue@1"],
        ]
        probe = ranking.ranked[1].scores.probe
        assert f"{probe.mean:.4f} ± {probe.standard_error:.4f}" in lines[1]
        assert f"−{ranking.ranked[0].scores.probe.mean - probe.mean:.4f}" in lines[1]

    def test_sentences(self, ranking: Ranking) -> None:
        assert heading(ranking).startswith("accuracy by label: 80 of 83 images (all), 4 classes, 3 folds, seed 1; ")
        best = ranking.ranked[0].scores.probe
        assert expectation(ranking).startswith(f"Expect accuracy {best.mean:.3f} ± {best.standard_error:.3f} ")
        said = list(remarks(ranking))
        assert "note: sees-green@1 stands for child@1: the same backbone" in said
        assert any(line.startswith("skipped: minute@1: ") for line in said)
        assert said[-1].startswith("not covered: folds share training images")


class TestChart:
    def test_points_stand_where_the_figures_say_filled_where_nothing_beats_them(
        self, ranking: Ranking, tmp_path: Path
    ) -> None:
        path = tmp_path / "chart.png"
        write_chart(path, ranking)
        front = front_of(ranking.ranked)
        with Image.open(path) as picture:
            assert picture.size == (WIDTH, HEIGHT)
            for each in ranking.ranked:
                x, y = Axes.around(ranking.ranked).at(each.cost.milliseconds, each.scores.probe.mean)
                inside = picture.getpixel((round(x) + 3, round(y)))
                assert inside == ((0x1F, 0x5F, 0xA8) if each in front else (255, 255, 255))

    def test_the_front_is_what_nothing_beats_in_both(self, ranking: Ranking) -> None:
        best, middle, worst = ranking.ranked

        def taking(each: Ranked, milliseconds: float) -> Ranked:
            return replace(each, cost=replace(each.cost, milliseconds=milliseconds))

        fast_worst = [taking(best, 9), taking(middle, 3), taking(worst, 1)]
        assert front_of(fast_worst) == fast_worst[::-1]
        assert front_of([taking(best, 1), taking(middle, 3), taking(worst, 9)]) == [taking(best, 1)]

    def test_ticks_are_round(self) -> None:
        assert ticks(0.31, 0.92) == pytest.approx([0.4, 0.6, 0.8])
        assert ticks(0.9, 0.94) == pytest.approx([0.9, 0.91, 0.92, 0.93, 0.94])
        assert log_ticks(0.4, 30) == pytest.approx([0.5, 1, 2, 5, 10, 20])
