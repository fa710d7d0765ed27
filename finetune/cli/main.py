"""The `finetune` command: training and asking. What a command needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from finetune.cli import (
    cache,
    data,
    evaluate,
    jobs,
    metrics,
    predict,
    rank,
    recipes,
    run,
    score,
    tensorboard,
    vocabulary,
    worker,
)
from zoo.cli.output import new_app, print_fields, run_cli

app = new_app("Fine-tune pretrained models, and ask what comes of it.")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print_fields([("modelzoo", version("modelzoo"))])
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run.run,
    "submit": run.submit,
    "list": jobs.list_,
    "get": jobs.get,
    "watch": jobs.watch,
    "logs": jobs.logs,
    "cancel": jobs.cancel,
    "evaluate": evaluate.evaluate,
    "worker": worker.worker,
    "score": score.score,
    "rank": rank.rank,
    "caption": predict.caption,
    "classify": predict.classify,
    "embed": predict.embed,
    "tensorboard": tensorboard.tensorboard,
    "vocabulary": vocabulary.vocabulary,
    "metrics": metrics.metrics,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(recipes.app, name="recipes")
app.add_typer(cache.app, name="cache")
app.add_typer(data.app, name="data")


def main() -> None:
    run_cli(app)


if __name__ == "__main__":
    main()
