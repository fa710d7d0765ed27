"""Which catalogue a command acts on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from zoo.cli.output import say

if TYPE_CHECKING:
    from zoo.catalog import Catalog


def local_catalog(store: str | None) -> Catalog:
    """The catalogue at `--store`, by default at MODELZOO_STORE, else in the user's data home."""
    from zoo.catalog import open_catalog

    return open_catalog(store)


def store_catalog(store: str | None, command: str) -> Catalog:
    """`local_catalog` for a command that doesn't act through a server; an ignored MODELZOO_SERVER is reported."""
    catalog = local_catalog(store)
    if os.environ.get("MODELZOO_SERVER") and store is None:
        say(f"note: `zoo {command}` acts on the store {catalog.store.url} itself, not through MODELZOO_SERVER")
    return catalog
