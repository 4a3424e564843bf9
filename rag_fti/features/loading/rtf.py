"""Rich Text Format: its words; control words, pictures and style tables are left out."""

from __future__ import annotations

import re

from rag_fti.features.loading.parsed import Limits, Parsed

_TOKEN = re.compile(
    r"\\(?P<word>[a-z]{1,32})(?P<number>-?\d{1,10})?[ ]?|\\'(?P<code>[0-9a-f]{2})"
    r"|\\(?P<escape>[^a-z])|(?P<brace>[{}])|[\r\n]+|(?P<plain>[^\\{}\r\n]+)",
    re.IGNORECASE,
)
_SILENT = {
    "fonttbl", "colortbl", "stylesheet", "info", "pict", "object", "header", "footer", "generator",
    "themedata", "datastore", "xmlnstbl", "listtable", "listoverridetable", "rsidtbl", "fldinst",
    "latentstyles", "filetbl", "revtbl", "mmathPr",
}  # fmt: skip
_MARKS = {"par": "\n\n", "line": "\n", "tab": "\t", "row": "\n", "cell": " | ", "page": "\n\n"}
_ESCAPES = {"~": " ", "-": "", "_": "-", "\\": "\\", "{": "{", "}": "}"}


def parse_rtf(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """The text of a Rich Text Format file."""
    if not data.startswith(b"{\\rtf"):
        raise ValueError("not a .rtf file inside")
    reader = _Reader()
    for match in _TOKEN.finditer(data.decode("latin-1")):
        reader.take(match)
    return Parsed("".join(reader.out).strip(), media_type=media_type)


class _Reader:
    """State of the walk: whether the current group is shown, how many characters to skip."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self._stack: list[tuple[bool, int]] = []
        self._silent = False
        self._fallback = 1
        self._skip = 0

    def take(self, match: re.Match[str]) -> None:
        kind = match.lastgroup
        if kind == "brace":
            self._brace(match["brace"])
        elif kind in ("word", "number"):
            self._word(match["word"], match["number"])
        elif kind == "escape":
            self._silent = self._silent or match["escape"] == "*"
            self._say(_ESCAPES.get(match["escape"], ""))
        elif kind == "code":
            if self._skip:
                self._skip -= 1
            else:
                self._say(bytes.fromhex(match["code"]).decode("cp1252", "replace"))
        elif kind == "plain":
            text = match["plain"]
            self._say(text[self._skip :])
            self._skip = max(0, self._skip - len(text))

    def _brace(self, brace: str) -> None:
        if brace == "{":
            self._stack.append((self._silent, self._fallback))
        else:
            self._silent, self._fallback = self._stack.pop() if self._stack else (False, 1)

    def _word(self, word: str, number: str | None) -> None:
        self._silent = self._silent or word in _SILENT
        if word == "uc" and number:
            self._fallback = int(number)
        elif word == "u" and number:
            self._say(chr(int(number) % 0x10000))
            self._skip = self._fallback
        else:
            self._say(_MARKS.get(word, ""))

    def _say(self, text: str) -> None:
        if not self._silent:
            self.out.append(text)
