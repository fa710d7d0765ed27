"""`finetune data inspect | build` as typed: data on stdout, talk on stderr, exit codes, files."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources import open_source
from tests.tiny import tiny_backbone_version
from zoo.catalog import open_catalog

FINETUNE = Path(sys.executable).parent / "finetune"


def finetune(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([FINETUNE, "data", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def photos(root: Path, count: int = 60, size: tuple[int, int] = (48, 40)) -> Path:
    for n in range(count):
        path = root / ("roses" if n % 2 else "tulips") / f"{n:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks_HWC = np.random.default_rng(n).integers(0, 256, (3, 3, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(blocks_HWC).resize(size, Image.Resampling.BICUBIC).save(out, "PNG")
        path.write_bytes(out.getvalue())
    return root


def test_inspect_as_json_text_page_and_picture(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    (root / "roses" / "bad.jpg").write_bytes(b"")
    done = finetune(
        "inspect",
        f"folder:{root}",
        *("--split", "ordered:40,10", "--format", "json", "--images", "4"),
        *("--html", tmp_path / "out" / "page.html", "--contact-sheet", tmp_path / "out" / "sheet.png"),
    )
    value = json.loads(done.stdout)
    assert (value["num_examples"], value["images"]["unreadable"]["count"]) == (61, 1)
    assert value["splits"][0]["examples"]["train"] == 40
    assert (tmp_path / "out" / "page.html").read_text().count("data:image/jpeg") == 4
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 800
    assert done.stderr == ""
    text = finetune("inspect", f"folder:{root}").stdout
    assert "1 of 61 images can't be used: 1 empty" in text
    assert "roses/bad.jpg: the image is empty (zero bytes)" in text


def test_faults_are_said(tmp_path: Path) -> None:
    gone = finetune("inspect", f"folder:{tmp_path}/gone", code=1)
    assert "it does not exist" in gone.stderr
    assert gone.stdout == ""
    usage = finetune("inspect", f"folder:{tmp_path}", "--duplicates", code=2)
    assert "give --backbone REF" in usage.stderr
    unknown = finetune("inspect", f"folder:{photos(tmp_path / 'p', 4)}", "--duplicates", "--backbone", "nobody", code=1)
    assert "nobody" in unknown.stderr
    refused = finetune("build", f"folder:{tmp_path}/p", tmp_path / "out", "--split", "hash:2,2", code=1)
    assert "two or three shares" in refused.stderr


def test_build_then_read_then_build_again(tmp_path: Path) -> None:
    location = f"folder:{photos(tmp_path / 'photos')}"
    arguments = ("build", location, tmp_path / "out", "--split", "ordered:40,20", "--shards", "4", "--format", "json")
    first = json.loads(finetune(*arguments, "--workers", "2").stdout)
    assert (first["made"], first["num_examples"]) == (6, {"train": 40, "validation": 20})
    again = finetune(*arguments)
    assert json.loads(again.stdout)["made"] == 0
    value = json.loads(finetune("inspect", first["data"], "--split", "source", "--format", "json").stdout)
    assert value["splits"][0]["examples"] == {"train": 40, "validation": 20, "test": 0, "unused": 0}
    assert [each["name"] for each in value["labels"]["classes"]] == ["roses", "tulips"]


def test_near_duplicates_by_a_backbone(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    with Image.open(root / "roses" / "001.png") as image:
        image.convert("RGB").save(root / "tulips" / "999.jpg", quality=95)
    tiny_backbone_version(open_catalog(None))
    asked = ("inspect", f"folder:{root}", "--duplicates", "--backbone", "tiny", "--threshold", "0.99")
    value = json.loads(finetune(*asked, "--format", "json").stdout)["near_duplicates"]
    [worst, *_] = value["worst"]
    assert {worst["first"], worst["second"]} == {"roses/001.png", "tulips/999.jpg"}
    assert value["compared"] == {"all": 61}
    value = json.loads(finetune(*asked, "--split", "ordered:60,1", "--format", "json").stdout)["near_duplicates"]
    assert value["images"] == {"validation": 1}
    assert value["worst"][0]["second_part"] == "validation"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_build_ends_at_once_and_goes_on_later(tmp_path: Path, number: signal.Signals) -> None:
    location, out = f"folder:{photos(tmp_path / 'photos', 400)}", tmp_path / "out"
    arguments = [FINETUNE, "data", "build", location, out, "--shards", "200", "--workers", "2"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("all-*"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    began = time.monotonic()
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - began < 2
    assert process.returncode in (130, -number)
    assert b"Traceback" not in said
    finetune("build", location, out, "--shards", "200")
    assert len(open_source(f"tfrecord:{out}").examples) == 400
    assert not list(out.glob(".tmp-*"))
