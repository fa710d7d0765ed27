"""A contact sheet: images with their truth and what the model said, as one HTML page and one PNG.

Takes rows of encoded image, truth and caption. Gives two files that need nothing else to be looked at.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont  # draws the sheet; decoding stays in finetune.data.preprocess

from finetune.data.preprocess import load_pixels
from zoo.atomic_file import replaced_file
from zoo.input_spec import InputSpec

THUMBNAIL = 224  # pixels a side
TEXT_HEIGHT = 96
COLUMNS = 4
MARGIN = 12
_MAX_PIXELS = 50_000_000


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One image; `truth` holds all that its authors said, `caption` what the model says."""

    name: str
    image: bytes
    truth: Sequence[str]
    caption: str


@dataclass(frozen=True, kw_only=True)
class ContactSheet:
    html: Path
    png: Path


def write_contact_sheet(folder: Path, rows: Sequence[SheetRow], *, title: str) -> ContactSheet:
    """Writes `contact-sheet.html` and `contact-sheet.png` into `folder` (made if need be), each atomically.

    Raises UnreadableImage when a row's bytes are not an image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sheet = ContactSheet(html=folder / "contact-sheet.html", png=folder / "contact-sheet.png")
    with replaced_file(sheet.html) as file:
        file.write(_page(rows, title).encode())
    write_picture(sheet.png, rows, title=title)
    return sheet


def write_picture(path: Path, rows: Sequence[SheetRow], *, title: str) -> None:
    """Writes the sheet as one PNG, atomically. Raises UnreadableImage when a row's bytes are not an image."""
    with replaced_file(path) as file:
        _picture(rows, title).save(file, "PNG")


def picture_of(rows: Sequence[SheetRow], *, title: str) -> np.ndarray:
    """The sheet as uint8 [height, width, 3]. Raises UnreadableImage when a row's bytes are not an image."""
    return np.asarray(_picture(rows, title))


def thumbnail(image: bytes, side: int) -> bytes:
    """A JPEG of `side` × `side` pixels that shows the whole image. Raises UnreadableImage."""
    spec = InputSpec(height=side, width=side, fit="pad", interpolation="bicubic")
    with io.BytesIO() as out:
        Image.fromarray(load_pixels(image, spec, max_pixels=_MAX_PIXELS)).save(out, "JPEG", quality=80)
        return out.getvalue()


def _page(rows: Sequence[SheetRow], title: str) -> str:
    figures = "\n".join(_figure(row) for row in rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; background: #fafafa; color: #222 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 1.2rem }}
figure {{ margin: 0; padding: .8rem; background: #fff; border: 1px solid #ddd; border-radius: 6px }}
img {{ width: 100%; display: block }} .said {{ font-weight: 600; margin: .5rem 0 }}
ul {{ margin: 0; padding-left: 1.1rem; color: #555 }} small {{ color: #777 }}
</style></head><body><h1>{html.escape(title)}</h1><main>
{figures}
</main></body></html>
"""


def _figure(row: SheetRow) -> str:
    kind = "png" if row.image.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(row.image).decode()
    truths = "".join(f"<li>{html.escape(text)}</li>" for text in row.truth)
    return (
        f'<figure><img src="data:image/{kind};base64,{data}" alt="{html.escape(row.caption, quote=True)}">'
        f'<p class="said">{html.escape(row.caption)}</p><ul>{truths}</ul>'
        f"<small>{html.escape(row.name)}</small></figure>"
    )


def _picture(rows: Sequence[SheetRow], title: str) -> Image.Image:
    cell_width, cell_height = THUMBNAIL + MARGIN, THUMBNAIL + TEXT_HEIGHT + MARGIN
    lines = max(1, -(-len(rows) // COLUMNS))
    picture = Image.new("RGB", (COLUMNS * cell_width + MARGIN, lines * cell_height + MARGIN + 32), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 10), title, fill="black", font=ImageFont.load_default(18))
    said, truth = ImageFont.load_default(14), ImageFont.load_default(12)
    spec = InputSpec(height=THUMBNAIL, width=THUMBNAIL, fit="pad", interpolation="bicubic")
    for place, row in enumerate(rows):
        x = MARGIN + (place % COLUMNS) * cell_width
        y = 40 + (place // COLUMNS) * cell_height
        pixels = load_pixels(row.image, spec, max_pixels=_MAX_PIXELS)
        picture.paste(Image.fromarray(pixels), (x, y))
        below = y + THUMBNAIL + 2
        below = _wrapped(draw, row.caption, (x, below), said, "black", limit=3)
        _wrapped(draw, row.truth[0] if row.truth else "", (x, below), truth, "#666666", limit=3)
    return picture


def _wrapped(
    draw: ImageDraw.ImageDraw,
    text: str,
    at: tuple[int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    fill: str,
    *,
    limit: int,
) -> int:
    """Draws `text` in at most `limit` lines of a thumbnail's width; returns the y below it."""
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) > THUMBNAIL and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    x, y = at
    for line in lines[:limit]:
        draw.text((x, y), line, fill=fill, font=font)
        y += 15
    return y + 2
