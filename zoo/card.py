"""The model card: Markdown whose facts come from the manifest, and whose other words are the user's.

Takes a ModelVersion and the model's stored text. Gives the card, and what an edited one comes to. Next: `zoo card`.

What is stored for a model (a blob, named by CARD_UPDATED in its log) holds only what is the user's: front-matter keys
that aren't ours, and the body, with a mark where the facts go. So facts can't be edited wrong and never go stale: they
are made anew from the manifest of the version that is asked for.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import yaml

from zoo.card_facts import OPEN_KEYS, facts_text, front_matter_of
from zoo.catalog import Catalog, ModelVersion
from zoo.errors import DataLoss, InvalidArgument, NotFound
from zoo.log import ModelState
from zoo.names import Reference

MAX_CARD = 1_000_000  # bytes of UTF-8
MAX_FRONT_MATTER = 64_000  # bytes; reading YAML is slow
MAX_DEPTH = 20
_BEGIN = re.compile(r"^<!-- facts(?: of (?P<reference>\S+))?(?:: .*)? -->$", re.MULTILINE)
_END = "<!-- end of facts -->"
_STORED_MARK = f"<!-- facts -->\n{_END}"
_LIMITS = """\
## Limits

Not stated. (For whoever knows: which photos it fails on, what it must not be used for, whom to ask.)
"""


class InvalidCard(InvalidArgument):
    """A text that can't be a model card."""


class DamagedCard(DataLoss):
    """A stored card that isn't one."""


class UnknownRevision(NotFound):
    """The model's log has no card at that number."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card as it is shown. `revision` is the seq of the log's CARD_UPDATED, None while nobody has edited it.

    `notes`: what of an edited text was not taken as it stood, and why.
    """

    reference: str
    revision: int | None
    front_matter: Mapping[str, Any]
    text: str
    notes: tuple[str, ...] = ()
    existing: bool = False  # after `edit_card`: the text was the card already

    def to_dict(self) -> dict[str, Any]:
        """As `zoo card --format json` prints it."""
        return {
            "reference": self.reference,
            "edited": self.revision is not None,
            "revision": self.revision,
            "text": self.text,
            "front_matter": dict(self.front_matter),
        }


def show_card(catalog: Catalog, version: ModelVersion, *, at: int | None = None) -> Card:
    """The card of a version; `at`: with the user's words as they were in that revision.

    Raises UnknownRevision, DamagedCard, CorruptBlob.
    """
    state = catalog.logs.state(version.name)
    if at is not None and at not in {entry.seq for entry in state.cards}:
        known = ", ".join(str(entry.seq) for entry in state.cards) or "none: the card was never edited"
        raise UnknownRevision(
            f"model {version.name!r} has no card revision {at}; revisions: {known}", hint=f"zoo history {version.name}"
        )
    return _shown(version, *_stored(catalog, state, at))


def edit_card(catalog: Catalog, version: ModelVersion, data: bytes) -> Card:
    """Makes `data` (UTF-8 Markdown, with or without front matter) the card of the version's model.

    What comes out as the card that is shown already changes nothing. Raises InvalidCard, and as `Catalog.set_card`.
    """
    before = show_card(catalog, version)
    extra, body = _parsed(_decoded(data))
    extra, notes = _own_keys(extra, version)
    body, more = _with_mark(body, version, catalog)
    notes = (*notes, *more)
    text = _joined(extra, body)
    if len(text.encode()) > MAX_CARD:
        raise _too_large(len(text.encode()))
    after = _shown(version, None, text)
    if after.text == before.text:
        return replace(before, notes=notes, existing=True)
    event = catalog.set_card(version.name, text.encode())
    state = catalog.logs.state(version.name)
    revision = event.seq if event else state.cards[-1].seq
    return replace(_shown(version, revision, text), notes=notes, existing=event is None)


def _stored(catalog: Catalog, state: ModelState, at: int | None) -> tuple[int | None, str | None]:
    entries = [entry for entry in state.cards if at is None or entry.seq == at]
    if not entries:
        return None, None
    data = catalog.read_blob(entries[-1].digest)
    return entries[-1].seq, _from_store(data, f"card revision {entries[-1].seq} of model {state.name!r}")


def _from_store(data: bytes, what: str) -> str:
    try:
        return _decoded(data)
    except InvalidCard as error:
        raise DamagedCard(f"{what} is no card: {error.message}", hint="zoo card REF --edit FILE") from None


def _shown(version: ModelVersion, revision: int | None, stored: str | None) -> Card:
    """`stored` None: the card that a version has when nobody wrote one."""
    extra, body = ({}, f"# {version.name}\n\n{_STORED_MARK}\n\n{_LIMITS}") if stored is None else _parsed(stored)
    front_matter = front_matter_of(version)
    front_matter |= {key: value for key, value in extra.items() if key not in front_matter or key in OPEN_KEYS}
    filled = body.replace(_STORED_MARK, _facts_block(version), 1)
    return Card(
        reference=version.reference,
        revision=revision,
        front_matter=front_matter,
        text=_joined(front_matter, filled),
    )


def _facts_block(version: ModelVersion) -> str:
    mark = f"<!-- facts of {version.reference}: made anew for each version while nobody edits them -->"
    return f"{mark}\n\n{facts_text(version).strip()}\n\n{_END}"


def _own_keys(extra: Mapping[str, Any], version: ModelVersion) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What of a front matter is the user's, and a note on what contradicts the manifest."""
    ours = front_matter_of(version)
    own = {key: value for key, value in extra.items() if key not in ours or (key in OPEN_KEYS and value != ours[key])}
    wrong = [key for key, value in extra.items() if key in ours and key not in OPEN_KEYS and value != ours[key]]
    if not wrong:
        return own, ()
    return own, (
        f"{', '.join(wrong)} in the front matter stay as the manifest of {version.reference} has them: "
        "facts come from the version, a card can't change them",
    )


def _with_mark(body: str, version: ModelVersion, catalog: Catalog) -> tuple[str, tuple[str, ...]]:
    """The body with an empty mark in the place of facts that nobody edited; edited ones become the user's words."""
    begin = _BEGIN.search(body)
    end = body.find(f"\n{_END}", begin.end()) if begin else -1
    if begin is None or end < 0:
        return body, ()
    written = body[begin.end() : end].strip()
    source = _version_of(begin["reference"], version, catalog)
    head, tail = body[: begin.start()], body[end + 1 + len(_END) :]
    if not written or written == facts_text(source).strip():
        return head + _STORED_MARK + tail, ()
    return f"{head}{written}{tail}", (
        "the part between the facts' marks was edited: it is kept as it is, and won't follow later versions; to have "
        f"it made anew, put the lines `<!-- facts -->` and `{_END}` in its place",
    )


def _version_of(reference: str | None, version: ModelVersion, catalog: Catalog) -> ModelVersion:
    """The version that a file's facts were made from: by its mark, else the one that is edited."""
    try:
        if reference is None or Reference.parse(reference).name != version.name:
            return version
        return catalog.get(reference)
    except (InvalidArgument, NotFound):
        return version


def _decoded(data: bytes) -> str:
    """The text in normal form C with `\\n` line ends. Raises InvalidCard."""
    if len(data) > MAX_CARD:
        raise _too_large(len(data))
    try:
        text = unicodedata.normalize("NFC", data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidCard(f"the card is not UTF-8: byte {error.start} cannot be read ({error.reason})") from None
    text = text.replace("\r\n", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        for character in line:
            if unicodedata.category(character) == "Cc" and character != "\t":
                raise InvalidCard(f"line {number} of the card holds the control character U+{ord(character):04X}")
    if not text.strip():
        raise InvalidCard("the card is empty")
    return text.strip("\n") + "\n"


def _too_large(size: int) -> InvalidCard:
    return InvalidCard(f"the card has {size} bytes, at most {MAX_CARD} are taken")


def _parsed(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and body. Raises InvalidCard."""
    if not text.startswith("---\n"):
        return {}, text.lstrip("\n")
    end = re.search(r"^---[ \t]*(?:\n|\Z)", text[4:], re.MULTILINE)
    if end is None:
        raise InvalidCard("the front matter that begins with '---' in line 1 has no second '---'")
    written, body = text[4 : 4 + end.start()], text[4 + end.end() :]
    if len(written.encode()) > MAX_FRONT_MATTER:
        raise InvalidCard(f"the front matter has {len(written.encode())} bytes, at most {MAX_FRONT_MATTER} are taken")
    return _loaded(written), body.lstrip("\n")


def _loaded(written: str) -> dict[str, Any]:
    try:
        # Aliases can make a short text stand for gigabytes.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(written, Loader=yaml.SafeLoader)):
            raise InvalidCard("the front matter uses a YAML alias (*name), which a card can't have")
        value = yaml.safe_load(written)
    except yaml.YAMLError as error:
        raise InvalidCard(f"the front matter is not YAML: {_where(error)}") from None
    except (RecursionError, ValueError) as error:  # ValueError: a date like 2024-13-45
        raise InvalidCard(f"the front matter can't be read: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidCard(f"the front matter is a {type(value).__name__}, it must be a mapping of `key: value`")
    return {_key(key, ""): _plain(item, str(key), 1) for key, item in value.items()}


def _where(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f"line {mark.line + 2}: " if mark else ""  # the first line of the card is `---`
    return f"{where}{problem or error}"


def _plain(value: Any, where: str, depth: int) -> Any:
    """`value` as JSON has it."""
    if depth > MAX_DEPTH:
        raise InvalidCard(f"{where[:80]}… in the front matter is nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list):
        return [_plain(item, where, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_key(key, f"{where}."): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, date):  # a datetime is one too
        return value.isoformat()
    raise InvalidCard(f"{where} in the front matter is a {type(value).__name__} ({value!r:.60}), which JSON can't hold")


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise InvalidCard(f"the front matter's key {where}{key!r} is a {type(key).__name__}, not text: quote it")
    return key


def _joined(front_matter: Mapping[str, Any], body: str) -> str:
    if not front_matter and not body.startswith("---"):  # which would be read as front matter
        return body
    head = yaml.safe_dump(dict(front_matter), sort_keys=False, allow_unicode=True, width=110) if front_matter else ""
    return f"---\n{head}---\n\n{body}"
