"""The heads that there are: one file and one line each. Nothing is imported before a head is asked for."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from finetune.models.heads.head import HeadKind
from finetune.spec import HeadConfig, checked
from zoo.errors import InvalidArgument


class UnknownHead(InvalidArgument):
    """A kind that is not in `HEADS`."""


def _captioner() -> HeadKind:
    from finetune.models.heads.captioner import CAPTIONER

    return CAPTIONER


def _classifier() -> HeadKind:
    from finetune.models.heads.classifier import CLASSIFIER

    return CLASSIFIER


def _embedding() -> HeadKind:
    from finetune.models.heads.embedding import EMBEDDING

    return EMBEDDING


def _multilabel() -> HeadKind:
    from finetune.models.heads.multilabel import MULTILABEL

    return MULTILABEL


HEADS: dict[str, Callable[[], HeadKind]] = {
    "captioner": _captioner,
    "classifier": _classifier,
    "embedding": _embedding,
    "multilabel": _multilabel,
}


def head_kind(kind: str) -> HeadKind:
    """The entry of a head. Raises UnknownHead naming those there are."""
    if kind not in HEADS:
        raise UnknownHead(f"no head {kind!r}; there are {', '.join(sorted(HEADS))}", kind=kind[:200])
    return HEADS[kind]()


def head_arguments(head: HeadConfig) -> BaseModel:
    """The arguments as the head's own `Arguments`. Raises UnknownHead; InvalidSpec naming every fault with its path."""
    return checked(head_kind(head.kind).Arguments, head.arguments, path=("head", "arguments"))
