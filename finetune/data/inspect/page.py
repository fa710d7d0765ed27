"""An Inspection as one HTML page that needs nothing else: thumbnails are in it, and it asks nobody for anything.

Takes an Inspection and rows to show. Gives HTML. Next: a browser.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence

from finetune.contact_sheet import SheetRow, thumbnail
from finetune.data.inspect.images import SIDES
from finetune.data.inspect.inspection import Inspection

_THUMBNAIL = 160  # pixels a side
_SUSPECTS = 100
_ROWS = 500  # of a table
# Nothing may be fetched, whatever a class or a caption is called.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem }
.tile { background: #f3f4f6; border-radius: 6px; padding: .7rem 1rem }
.tile b { display: block; font-size: 1.35rem } .problems li { margin: .25rem 0; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .15rem .7rem .15rem 0;
vertical-align: top; overflow-wrap: anywhere }
td.n { text-align: right; font-variant-numeric: tabular-nums; width: 6rem }
td.bar { width: 45% } td.bar div { background: #3b6ea5; height: .8rem; border-radius: 2px }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 0 2.5rem }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 1rem }
figure { margin: 0 } img { display: block; border-radius: 4px } small { color: #666; overflow-wrap: anywhere }
"""


def page(found: Inspection, rows: Sequence[SheetRow]) -> str:
    """The whole page. Raises UnreadableImage where a row's bytes are no image."""
    title = html.escape(found.data)
    body = "\n".join(_sections(found, rows))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def _sections(found: Inspection, rows: Sequence[SheetRow]) -> Iterator[str]:
    yield _tiles(found)
    problems = list(found.problems())
    yield f"<h2>Problems: {len(problems) or 'none'}</h2>"
    yield _list("problems", problems)
    yield _list("notes", [f"Note: {note}" for note in found.notes])
    bad = [*found.bad_records, *found.images.unreadable_examples]
    if bad:
        count = len(found.bad_records) + found.images.unreadable
        yield f"<h2>Records that can't be used: {count}</h2>"
        yield _table(["record", "reason"], [(record.id, record.reason) for record in bad])
    if rows:
        yield "<h2>Some of the images</h2>"
        yield f'<div class="sheet">{"".join(_figure(row) for row in rows)}</div>'
    yield '<div class="columns">'
    yield from _histograms(found)
    yield "</div>"
    yield "<h2>Splits</h2>"
    yield _table(
        ["rule", "train", "validation", "test", "unused", ""],
        [
            (o.rule, *(str(n) for n in o.examples.values()), "") if o.examples else (o.rule, "", "", "", "", o.error)
            for o in found.splits
        ],
    )
    yield from _doubles(found)


def _tiles(found: Inspection) -> str:
    images = found.images
    tiles = [("examples", f"{found.num_examples:,}"), ("images looked at", f"{images.looked_at:,}")]
    tiles.append(("size", f"{images.bytes / 1e6:,.1f} MB"))
    if found.labels:
        tiles.append(("classes", f"{len(found.labels.counts):,}"))
    if found.captions:
        tiles.append(("captions", f"{found.captions.captions:,}"))
    tiles.append(("can't be used", f"{len(found.bad_records) + images.unreadable:,}"))
    tiles.append(("copies", f"{images.copies:,}"))
    inner = "".join(f'<div class="tile"><b>{html.escape(value)}</b>{html.escape(name)}</div>' for name, value in tiles)
    return f'<div class="tiles">{inner}</div>'


def _histograms(found: Inspection) -> Iterator[str]:
    images = found.images
    yield _bars("Formats", list(images.formats.items()))
    sides = [(f"{low} and more", images.shorter_side.get(low, 0)) for low in SIDES]
    yield _bars("Shorter side in pixels", [(name, count) for name, count in sides if count])
    if labels := found.labels:
        order = "in lexicographic order" + ("" if labels.natural_order is None else ", not the natural one")
        yield _bars(f"Images a class, {order}", list(labels.counts.items()))
        if labels.several:
            yield _bars("Classes an image", [(str(number), count) for number, count in labels.per_image.items()])
    if captions := found.captions:
        yield _bars("Words a caption", [(str(length), count) for length, count in captions.lengths.items()])
        yield "<div><h2>Vocabulary</h2>"
        held = f"of validation by {captions.held_out_rule}" if captions.held_out_rule else ""
        yield _table(
            ["seen at least", "words", "cover of all", held],
            [
                (
                    str(each.min_count),
                    str(each.words),
                    f"{each.coverage:.1%}",
                    "" if each.held_out is None else f"{each.held_out:.1%}",
                )
                for each in captions.vocabulary
            ],
        )
        yield "</div>"
        yield _bars("Commonest words", list(captions.commonest))
        yield _bars("Captions by language", [(each.code, each.captions) for each in captions.languages])


def _doubles(found: Inspection) -> Iterator[str]:
    if found.images.groups:
        yield "<h2>The same bytes</h2>"
        yield _table(
            ["images", "labels"], [(", ".join(each.ids), ", ".join(each.labels)) for each in found.images.groups]
        )
    if found.near:
        yield f"<h2>Near duplicates: {found.near.pairs} pairs</h2>"
        yield _table(
            ["similarity", "image", "and"],
            [
                (f"{pair.similarity:.4f}", f"{pair.first} ({pair.first_part})", f"{pair.second} ({pair.second_part})")
                for pair in found.near.worst
            ],
        )
    if found.suspects:
        yield f"<h2>Label suspects: {len(found.suspects.suspects)} of {found.suspects.looked_at} images</h2>"
        yield _table(
            ["margin", "image", "label", "looks like"],
            [(f"{each.margin:.2f}", each.id, each.label, each.seen) for each in found.suspects.suspects[:_SUSPECTS]],
        )


def _figure(row: SheetRow) -> str:
    data = base64.b64encode(thumbnail(row.image, _THUMBNAIL)).decode()
    said = html.escape(row.caption or row.name, quote=True)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" width="{_THUMBNAIL}" height="{_THUMBNAIL}" alt="{said}">'
        f"{html.escape(row.caption)}<br><small>{html.escape(row.name)}</small></figure>"
    )


def _bars(title: str, rows: Sequence[tuple[str, int]]) -> str:
    if not rows:
        return ""
    most = max(count for _, count in rows) or 1
    lines = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="n">{count:,}</td>'
        f'<td class="bar"><div style="width:{100 * count / most:.1f}%"></div></td></tr>'
        for name, count in rows[:_ROWS]
    )
    return f"<div><h2>{html.escape(title)}</h2><table>{lines}</table>{_more(len(rows))}</div>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell or '')}</td>" for cell in row) + "</tr>" for row in rows[:_ROWS]
    )
    return f"<table><tr>{top}</tr>{lines}</table>{_more(len(rows))}"


def _more(rows: int) -> str:
    return f"<small>and {rows - _ROWS:,} more</small>" if rows > _ROWS else ""


def _list(kind: str, lines: Sequence[str]) -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{html.escape(line)}</li>" for line in lines)}</ul>' if lines else ""
