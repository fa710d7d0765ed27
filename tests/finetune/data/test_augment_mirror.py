"""Which captions and labels forbid a mirror image."""

from __future__ import annotations

import pytest

from finetune.data.augment_mirror import may_mirror

FORBIDDEN = [
    "A dog on the LEFT of a car.",
    "the right-hand side",
    "turn_left",
    "TurnRight",
    "arrow-right",
    "leftmost",
    "He drives clockwise",
    "Ein Hund links neben dem Auto",
    "der rechte Arm",
    "à gauche de la maison",
    "un perro a la derecha",
    "um cão à esquerda",
    "un gatto a sinistra",
    "собака слева",
    "Σκύλος αριστερά",
    "sağ tarafta bir köpek",
    "狗在左边",
    "右側の犬",
    "왼쪽에 있는 개",
    "कुत्ता बाएँ है",
    "कुत्ता दायीं ओर",
    "كلب على اليسار",
    "כלב מימין",
    "vänster".upper(),
    "va\u0308nster",  # decomposed
    "→",
]
ALLOWED = [
    "",
    "A dog runs over the grass.",
    "bright lights and a cleft rock",
    "a frightened cat, copyright",
    "ein Gericht aus dem Norden",
    "un droïde",
    "слон и правда",
    "лев в клетке",  # a lion
    "一只狗",
    "कुत्ता घास पर",
    "upright",
]


@pytest.mark.parametrize("text", FORBIDDEN)
def test_forbidden(text: str) -> None:
    assert not may_mirror([text])
    assert not may_mirror(["A dog.", text])


@pytest.mark.parametrize("text", ALLOWED)
def test_allowed(text: str) -> None:
    assert may_mirror([text])


def test_no_texts_forbid_nothing() -> None:
    assert may_mirror([])
