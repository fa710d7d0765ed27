"""`finetune cache list | clear`: the cached features."""

from __future__ import annotations

from zoo.cli.output import DebugOption, Format, FormatOption, new_app, print_json, print_table, size_text

app = new_app("Features of frozen backbones, computed once.")


@app.command("list")
def list_(output: FormatOption = Format.TEXT, debug: DebugOption = False) -> None:
    """What is cached: backbone, images, bytes."""
    from finetune.data.features import FeatureCache

    entries = FeatureCache().list()
    if output is Format.JSON:
        print_json([entry.to_json() for entry in entries])
        return
    print_table(
        ["backbone", "view", "vectors", "bytes"],
        [[entry.backbone[:19], entry.view, entry.vectors, size_text(entry.bytes)] for entry in entries],
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
