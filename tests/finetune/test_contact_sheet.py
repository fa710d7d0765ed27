"""The contact sheet: both files hold every image and text, and nothing of a caption is markup."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from finetune.contact_sheet import COLUMNS, SheetRow, write_contact_sheet
from finetune.data.preprocess import UnreadableImage


def _png(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(out, "PNG")
    return out.getvalue()


def test_both_files_show_every_row(tmp_path: Path) -> None:
    colours = ["red", "green", "blue", "yellow", "black"]
    rows = [SheetRow(name=f"{c}.png", image=_png(c), truth=[f"all {c}"], caption=f"it is {c}") for c in colours]
    sheet = write_contact_sheet(tmp_path / "new", rows, title="Colours")
    page = sheet.html.read_text()
    for colour in colours:
        assert f"it is {colour}" in page
        assert f"all {colour}" in page
    picture = Image.open(sheet.png).convert("RGB")
    seen = set(picture.getdata()) if not hasattr(picture, "get_flattened_data") else set(picture.get_flattened_data())
    assert {(255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0)} <= seen
    assert picture.height > picture.width / COLUMNS * 2  # two lines of cells
    assert sorted(path.name for path in sheet.png.parent.iterdir()) == ["contact-sheet.html", "contact-sheet.png"]


def test_text_is_never_markup(tmp_path: Path) -> None:
    row = SheetRow(name="<b>", image=_png("red"), truth=["<script>alert(1)</script>"], caption='"><img src=x>')
    page = write_contact_sheet(tmp_path, [row], title="<i>").html.read_text()
    assert "<script>" not in page
    assert "<img src=x>" not in page
    assert "<b>" not in page


def test_bytes_that_are_no_image_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage):
        write_contact_sheet(tmp_path, [SheetRow(name="x", image=b"no", truth=[], caption="")], title="t")
