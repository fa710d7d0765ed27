"""Feature sets: the vectors that machines share through a store, seen from outside: how much, and when last used.

Takes a store. Gives a FeatureSet each. Next: `zoo.gc` removes those that nobody has used for long, and
`finetune.data.feature_store` says which it uses.

```
features/<set>/key.json, <sha256>.npy   see `finetune.data.feature_store`
features/<set>/used.json                put anew by who fetches from the set, once a day: when that was, by the store
```

A set that goes costs the next job its passes, nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from zoo.errors import ZooError
from zoo.store.object_store import ObjectInfo, ObjectStore

FEATURES = "features/"
USED = "used.json"
KEPT = timedelta(days=30)  # since the last use, or the last vectors that were added


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    name: str
    objects: tuple[ObjectInfo, ...]

    @property
    def bytes(self) -> int:
        return sum(info.size for info in self.objects)

    @property
    def last_use(self) -> float:
        """Seconds since the epoch, by the store's clock."""
        return max((info.modified for info in self.objects), default=0.0)


def feature_sets(store: ObjectStore) -> Iterator[FeatureSet]:
    for name in store.folders(FEATURES):
        if (found := feature_set(store, name)).objects:
            yield found


def feature_set(store: ObjectStore, name: str) -> FeatureSet:
    """Without objects where there is no such set."""
    return FeatureSet(name=name, objects=tuple(store.list(f"{FEATURES}{name}/")))


def mark_used(store: ObjectStore, name: str) -> None:
    """Says that the set is of use. Best effort: who may not write, may still fetch, and a set that is taken for unused
    is computed again."""
    with suppress(ZooError):
        store.put(f"{FEATURES}{name}/{USED}", b"{}")
