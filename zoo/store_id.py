"""The store's id: by it what is kept locally about a store shows to be about another one, deleted and made again.

Takes a store. Gives 32 hexadecimal digits, made once by the first publish. Next: `zoo.search`, `zoo.store.probe`.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.errors import DataLoss
from zoo.manifest import canonical_json
from zoo.store.object_store import ObjectMissing, ObjectStore
from zoo.transfer import create_same

KEY = "store.json"


class DamagedStoreId(DataLoss):
    """`store.json` isn't what was written."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    schema_: Annotated[Literal[1], Field(alias="schema")]


def store_id(store: ObjectStore) -> str | None:
    """None for a store that nobody has written to. Raises DamagedStoreId and the store's errors."""
    try:
        data = store.read(KEY)
    except ObjectMissing:
        return None
    try:
        return _Stored.model_validate_json(data).id
    except ValidationError as error:
        raise DamagedStoreId(
            f"{KEY} in {store.url} is damaged: {error.errors()[0]['msg']}",
            hint=f"remove {KEY}: the next publish makes a new one, and local indexes are then built anew",
        ) from None


def made_store_id(store: ObjectStore) -> str:
    """The store's id, made if there is none; of racing makers all get the winner's. Raises as `store_id`."""
    if (found := store_id(store)) is not None:
        return found
    mine = secrets.token_hex(16)
    create_same(store, KEY, canonical_json({"id": mine, "schema": 1}))
    return store_id(store) or mine
