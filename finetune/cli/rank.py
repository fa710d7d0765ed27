"""`finetune rank`: which checkpoint to start from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.data import ProgressBar
from finetune.cli.evaluate import SplitName
from finetune.cli.request import absolute_data
from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    StoreOption,
    print_json,
    print_table,
    printable,
    say,
    say_next,
)

if TYPE_CHECKING:
    from finetune.spec import DataConfig


class By(StrEnum):
    auto = "auto"
    label = "label"
    labels = "labels"
    captions = "captions"


def rank(
    data: Annotated[str, typer.Option("--data", metavar="DATA", help="KIND:LOCATION with classes or captions.")],
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", metavar="REF", help="Repeatable. Default: every backbone of the catalogue."),
    ] = None,
    sample: Annotated[int, typer.Option("--sample", min=10, help="Images to look at, stratified by class.")] = 2000,
    folds: Annotated[int, typer.Option("--folds", min=2, max=20, help="Of the cross-validation.")] = 5,
    by: Annotated[By, typer.Option("--by", help="What to tell; auto: classes if there are any.")] = By.auto,
    split: Annotated[
        SplitName, typer.Option("--split", help="Whose images. The others stay unseen until they judge the model.")
    ] = SplitName.train,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="data.… only")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of split, sample and folds.")] = 1,
    chart: Annotated[
        Path | None, typer.Option("--chart", metavar="FILE.png", help="Draw the measure against milliseconds.")
    ] = None,
    store: StoreOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Rank backbones by what their features tell about DATA, and by cost.

    Linear probe and kNN are cross-validated on a sample, LogME is computed, time is measured here. Features are cached.
    """
    if chart is not None and chart.suffix.lower() != ".png":
        raise typer.BadParameter(f"--chart {chart}: it is a PNG; name it FILE.png")
    config = _data(data, settings or [])
    from finetune.data.sources import open_source
    from zoo.catalog import open_catalog

    catalog = open_catalog(store)
    if os.environ.get("MODELZOO_SERVER") and store is None:
        say(f"note: `finetune rank` acts on the store {catalog.store.url} itself, not through MODELZOO_SERVER")
    for reference in backbone or []:
        catalog.get(reference)  # an unknown one is said before TensorFlow comes up
    source = open_source(config.location, language=config.language)
    from finetune.tensorflow_start import start_tensorflow

    start_tensorflow()
    from finetune.rank.ranking import RankRequest
    from finetune.rank.ranking import rank as ranked
    from finetune.rank.targets import KINDS

    request = RankRequest(
        data=config,
        backbones=tuple(backbone or ()),
        by=next((kind for kind in KINDS if kind == by.value), None),  # auto: none of them
        sample=sample,
        folds=folds,
        part=split.value,
        seed=seed,
    )
    with ProgressBar() as bar:
        ranking = ranked(catalog, source, request, on_progress=bar.update)
    from finetune.rank.table import COLUMNS, expectation, heading, remarks, table_rows

    if chart is not None:
        from finetune.rank.chart import write_chart

        write_chart(chart, ranking)
        say(f"chart: {chart}")
    if output is Format.JSON:
        print_json(ranking.to_json())
    else:
        print(printable(heading(ranking)))
        print_table(COLUMNS, table_rows(ranking))
        print(printable(expectation(ranking)))
    for remark in remarks(ranking):
        say(remark)
    say_next(f"finetune run --backbone {ranking.ranked[0].candidate.reference} --data {data} …")


def _data(location: str, settings: Sequence[str]) -> DataConfig:
    """Raises InvalidSpec, UnknownSource."""
    from finetune.data.sources import data_defaults
    from finetune.spec import DataConfig, InvalidSpec, checked, with_settings

    strange = [setting for setting in settings if not setting.startswith("data.")]
    if strange:
        raise InvalidSpec(f"--set {strange[0]!r}: ranking takes settings of the data only, e.g. data.split=…")
    value = {"data": {"location": absolute_data(location), **data_defaults(location)}}
    return checked(DataConfig, with_settings(value, list(settings))["data"], path=("data",))
