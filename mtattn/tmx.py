"""Translation memories (TMX 1.4, https://www.gala-global.org/tmx-14b), read as a stream with constant memory.

A file from a stranger must not expand entities or fetch anything: a document type with declarations of its own and
every reference to an entity beyond XML's five are refused, and the parser of the standard library opens no file.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO
from xml.parsers import expat

from mtattn.errors import CorpusError

CHUNK_BYTES = 1 << 16
XML_LANG = "xml:lang"
LAYOUT = re.compile(r"[ \t\r\n]+")
"""What XML calls white space. Other spaces, such as U+00A0 before a French colon, are text."""
MARKUP = frozenset({"bpt", "ept", "it", "ph", "ut"})
"""Inline elements whose content is formatting code, not text."""


class TmxParser:
    """Collects the wanted language variants of each translation unit into `pairs`, as expat reports the elements."""

    def __init__(self, path: str, languages: tuple[str, str]) -> None:
        self.path = path
        self.languages = languages
        self.pairs: list[tuple[int, str, str]] = []
        self.variants: dict[str, str] = {}
        self.unit_line = 0
        self.language = ""
        self.text: list[str] | None = None
        self.markup_depth = 0
        self.expat = expat.ParserCreate()
        self.expat.buffer_text = True
        self.expat.StartElementHandler = self.start
        self.expat.EndElementHandler = self.end
        self.expat.CharacterDataHandler = self.characters
        self.expat.StartDoctypeDeclHandler = self.doctype
        self.expat.EntityDeclHandler = self.entity
        self.expat.SkippedEntityHandler = self.entity

    def feed(self, data: bytes, is_final: bool) -> list[tuple[int, str, str]]:
        """Parses some bytes and returns the pairs that they completed, as (line, source, target)."""
        try:
            self.expat.Parse(data, is_final)
        except expat.ExpatError as error:
            reason = expat.errors.messages[error.code]
            raise CorpusError(f"{self.path}:{error.lineno}: not well-formed TMX ({reason})") from error
        except (ValueError, LookupError) as error:  # expat asks Python for encodings that it does not know
            raise self.refuse(f"its encoding cannot be read ({error}); save it as UTF-8") from error
        pairs, self.pairs = self.pairs, []
        return pairs

    def refuse(self, reason: str) -> CorpusError:
        """The error for something at the parser's present line."""
        return CorpusError(f"{self.path}:{self.expat.CurrentLineNumber}: {reason}")

    def doctype(self, name: str, system_id: str | None, public_id: str | None, has_internal_subset: bool) -> None:
        """Accepts the standard's ``<!DOCTYPE tmx SYSTEM "tmx14.dtd">``, which is never fetched, and no declarations."""
        if has_internal_subset:
            raise self.refuse("the document type declares entities or elements, which is refused; remove <!DOCTYPE ..>")

    def entity(self, name: str, *_: object) -> None:
        """Refuses an entity, declared or used."""
        raise self.refuse(f"entity &{name}; is refused; write the character itself")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        if self.markup_depth or name in MARKUP:
            self.markup_depth += 1
        elif name == "tu":
            self.unit_line, self.variants = self.expat.CurrentLineNumber, {}
        elif name == "tuv":
            self.language = attributes.get(XML_LANG) or attributes.get("lang", "")
        elif name == "seg":
            self.text = []

    def characters(self, data: str) -> None:
        """Some text, kept where it is a segment's."""
        if self.text is not None and not self.markup_depth:
            self.text.append(data)

    def end(self, name: str) -> None:
        """An element ends."""
        if self.markup_depth:
            self.markup_depth -= 1
        elif name == "seg" and self.text is not None:
            # A line break inside a segment is layout of the file, not text: runs of space become one space.
            self.variants.setdefault(self.language, LAYOUT.sub(" ", "".join(self.text)).strip(" "))
            self.text = None
        elif name == "tu":
            src, tgt = (self.variant(language) for language in self.languages)
            self.pairs.append((self.unit_line, src, tgt))

    def variant(self, wanted: str) -> str:
        """The unit's text in a language: the exact code, else the first that specifies it (en: en-US, never back)."""
        wanted = normalized(wanted)
        codes = {normalized(code): text for code, text in reversed(self.variants.items())}
        near = [code for code in codes if code.startswith(f"{wanted}-")]
        for code in (wanted, *reversed(near)):
            if code in codes:
                return codes[code]
        raise CorpusError(
            f'{self.path}:{self.unit_line}: the unit has no "{wanted}" variant; it has '
            f"{', '.join(self.variants) or 'none'}. Set `columns` to two of them, or remove the unit"
        )


def normalized(code: str) -> str:
    """A language code as it is compared: ``EN_us`` is ``en-us``."""
    return code.lower().replace("_", "-")


def tmx_pairs(file: BinaryIO, path: str, languages: tuple[str, str]) -> Iterator[tuple[int, str, str]]:
    """Yields the pairs of a TMX file.

    Args:
        file: the open file.
        path: its name, for error messages.
        languages: codes of source and target; ``en`` finds ``en-US`` too.

    Yields:
        (line of the unit, source, target).

    Raises:
        CorpusError: the file is not well-formed or in an encoding that expat cannot read, declares or uses an entity,
            or a unit lacks a language.
    """
    parser = TmxParser(path, languages)
    while chunk := file.read(CHUNK_BYTES):
        yield from parser.feed(chunk, False)
    yield from parser.feed(b"", True)
