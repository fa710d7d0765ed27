"""`finetune recipes` and `finetune recipes show NAME`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    print_json,
    say_next,
)

app = typer.Typer(help="Whole training plans by name.", invoke_without_command=True)


@app.callback()
def recipes(context: typer.Context, output: FormatOption = Format.TEXT, debug: DebugOption = False) -> None:
    """List the recipes, or show one."""
    from finetune.recipes import RECIPES

    if context.invoked_subcommand is not None:
        return
    found = [make() for make in RECIPES.values()]
    if output is Format.JSON:
        print_json([{"name": r.name, "head": r.head, "summary": r.summary} for r in found])
        return
    for r in found:
        print(f"{r.name:12} {r.head:12} {r.summary}")
    say_next("finetune recipes show NAME")


@app.command()
def show(
    name: Annotated[str, typer.Argument()],
    spec: Annotated[bool, typer.Option("--spec", help="As a SPEC.yaml to edit and run.")] = False,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Print every value of a recipe with its reason."""
    from finetune.recipes import find_recipe, spec_text, whole_spec

    recipe = find_recipe(name)
    if output is Format.JSON:
        choices = {path: {"value": c.value, "reason": c.reason} for path, c in recipe.choices.items()}
        head = {"name": recipe.name, "head": recipe.head, "summary": recipe.summary}
        print_json({**head, "choices": choices, "spec": whole_spec(recipe)})
        return
    if spec:
        print(spec_text(recipe), end="")
        return
    print(f"{recipe.name}: {recipe.summary}")
    for path, choice in recipe.choices.items():
        print(f"  {path}={json.dumps(choice.value)}".ljust(48) + " " + choice.reason)
    say_next(f"finetune recipes show {recipe.name} --spec > SPEC.yaml")
