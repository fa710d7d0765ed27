"""`finetune cache list | clear`: the cached features."""

from __future__ import annotations

import sys

from zoo.cli.output import DebugOption, Format, FormatOption, new_app, print_json, print_table, size_text

app = new_app("Features of frozen backbones, computed once.")


@app.command("list")
def list_(output: FormatOption = Format.TEXT, debug: DebugOption = False) -> None:
    """What is cached: backbone, dtype, images, bytes, when it was last used and whether a running process uses it."""
    from finetune.data.feature_room import feature_limit
    from finetune.data.features import FeatureCache

    entries = FeatureCache().list()
    if output is Format.JSON:
        print_json([entry.to_json() for entry in entries])
        return
    limit = feature_limit()
    total = size_text(sum(entry.bytes for entry in entries))
    print(f"{total} of {size_text(limit)}" if limit else f"{total}, without a cap", file=sys.stderr)
    print_table(
        ["backbone", "dtype", "view", "vectors", "bytes", "last use", "in use"],
        [
            [
                entry.backbone[:19],
                entry.dtype,
                entry.view,
                entry.vectors,
                size_text(entry.bytes),
                f"{entry.last_use:%Y-%m-%d %H:%M} UTC",
                "yes" if entry.in_use else "no",
            ]
            for entry in entries
        ],
    )


@app.command()
def clear(output: FormatOption = Format.TEXT, debug: DebugOption = False) -> None:
    """Delete every cached feature; they are computed again when they are needed."""
    from finetune.data.features import FeatureCache

    freed = FeatureCache().clear()
    if output is Format.JSON:
        print_json({"bytes_freed": freed})
    else:
        print(f"{size_text(freed)} freed")
