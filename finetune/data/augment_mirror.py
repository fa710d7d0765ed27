"""Which words forbid a mirror image: a dog "on the left" is on the right of it.

Takes captions, labels or class names. Gives yes or no. Next: `finetune.data.augment`.

Errs towards forbidding ("he left", "all right"): a picture that is never mirrored costs little, a caption that is wrong
teaches what is wrong. Writing, clock faces and flags in the picture itself can't be seen from here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Whole words, compared without case; a trailing * stands for any ending.
_WORDS: dict[str, str] = {
    "English": "left lefts lefthand* leftmost leftward* leftside "
    "right rights righthand* rightmost rightward* rightside "
    "clockwise anticlockwise counterclockwise starboard",
    "German": "links linke linken linker linkem linkes linksherum "
    "rechts rechte rechten rechter rechtem rechtes rechtsherum",
    "French": "gauche gauches droite droites droit",
    "Spanish": "izquierda izquierdas izquierdo izquierdos derecha derechas derecho derechos",
    "Italian": "sinistra sinistre sinistro sinistri destra destre destro destri",
    "Portuguese": "esquerda esquerdas esquerdo esquerdos direita direitas direito direitos",
    "Catalan": "esquerra esquerre dreta dret",
    "Dutch": "linker linksaf rechter rechtsaf",
    "Swedish, Danish, Norwegian": "vänster vänstra venstre höger högra højre høyre",
    "Polish": "lewo lewa lewy lewej lewym lewą prawo prawa prawy prawej prawym prawą",
    "Czech": "vlevo levá levý levé levém doleva vpravo pravá pravý pravé pravém doprava",
    "Russian": "слева влево левый левая левое левого левой левом левую "
    "справа вправо правый правая правое правого правой правом правую",
    "Ukrainian": "зліва ліворуч лівий ліва ліве лівого лівої праворуч правий права праве правого правої",
    "Turkish": "sol sola solda soldan soldaki sağ sağa sağda sağdan sağdaki",
    "Greek": "αριστερ* δεξι*",
    "Indonesian": "kiri kanan",
    "Vietnamese": "trái phải",
    "Finnish": "vasen vasem* oikea* oikeal*",
    "Hungarian": "bal balra baloldal* jobb jobbra jobboldal*",
    "Romanian": "stâng* dreapt* drept*",
    "Hebrew": "שמאל שמאלה משמאל ימין ימינה מימין",
    "Arabic": "يسار اليسار يسارا يمين اليمين يمينا",
    "Hindi": "बाएँ बाएं बायाँ बायां बाईं बायीं दाएँ दाएं दायाँ दायां दाईं दायीं",
}
_ANYWHERE = ("左", "右", "왼쪽", "오른쪽", "좌측", "우측", "ซ้าย", "ขวา", "←", "→")  # words aren't set apart, and arrows


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


def _pattern() -> re.Pattern[str]:
    words = sorted({_plain(word) for line in _WORDS.values() for word in line.split()})
    whole = "|".join(re.escape(word).replace(r"\*", r"\w*") for word in words)
    # Not \b: a vowel sign at the end of a word of Hindi is no word character for Python.
    return re.compile(rf"(?<!\w)(?:{whole})(?![\w\u0900-\u097f])|{'|'.join(map(_plain, _ANYWHERE))}")


_FORBIDDING = _pattern()
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def may_mirror(texts: Iterable[str]) -> bool:
    """False where a text speaks of left or right in a language of the table; also as turn_left, turn-left, TurnLeft."""
    return not any(_FORBIDDING.search(_plain(_CAMEL.sub(" ", text).replace("_", " "))) for text in texts)
