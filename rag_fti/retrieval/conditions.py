"""What a filter may say: a small part of SQL that cannot fail on a row.

A filter of an untrusted client is one operand of ``AND`` beside the collections it may see, but
the database is free to evaluate it on other rows as well, and where that fails, says with which
value. So columns are compared with literals of their own type and with nothing else: no casts, no
arithmetic, no column beside a column. What is accepted is one condition, whatever it says::

    condition  = part {("AND" | "OR") part}
    part       = "NOT" part | "(" condition ")" | "TRUE" | "FALSE" | test | function "(" … ")"
    test       = value comparison literal
               | value ["NOT"] ("LIKE" | "ILIKE") text
               | value ["NOT"] "IN" "(" literal {"," literal} ")"
               | value ["NOT"] "BETWEEN" literal "AND" literal
               | value "IS" ["NOT"] "NULL"
    value      = column | literal | function "(" column {"," literal} ")"
    literal    = text | number | "NULL" | ("TIMESTAMP" | "DATE") text
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from rag_fti.errors import ConfigError
from rag_fti.schemas import chunks_schema

MAX_FILTER_CHARS = 4000
_DEEPEST = 50

_TOKEN = re.compile(
    r"""[ ]*(?:(?P<text>'(?:[^']|'')*')
    |(?P<column>`[^`]+`|"[^"]+")
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<number>-?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?)(?![\w'"])
    |(?P<sign><=|>=|<>|!=|[=<>(),]))""",
    re.VERBOSE,
)
_COMPARISONS = frozenset({"=", "<>", "!=", "<", ">", "<=", ">="})
_FUNCTIONS = {
    "lower": "text",
    "upper": "text",
    "length": "number",
    "char_length": "number",
    "starts_with": "truth",
    "ends_with": "truth",
    "contains": "truth",
    "regexp_like": "truth",
}
"""Functions of a text column, and the kind of what they give."""
_INTERNAL = frozenset({"indexed_text", "indexed_digest", "vector"})
"""Columns of the store's own, not for filters."""


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


def check_condition(where: str) -> None:
    """Refuse a filter that is anything else than one condition of the form above.

    Raises:
        ConfigError: With what does not fit.
    """
    if len(where) > MAX_FILTER_CHARS:
        raise ConfigError(
            f"The filter has {len(where)} characters, at most {MAX_FILTER_CHARS} are accepted."
        )
    _Reader(where).read()


@lru_cache(maxsize=1)
def _kinds() -> dict[str, str]:
    """Kind of each column that a filter may use."""

    def kind(type_: pa.DataType) -> str:
        if pa.types.is_string(type_):
            return "text"
        if pa.types.is_integer(type_):
            return "number"
        assert pa.types.is_timestamp(type_)
        return "time"

    fields = (field for field in chunks_schema(1) if field.name not in _INTERNAL)
    return {field.name: kind(field.type) for field in fields}


class _Reader:
    """Reads a condition token by token."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._tokens = self._split(where)
        self._at = 0
        self._depth = 0

    def read(self) -> None:
        self._condition()
        if self._at < len(self._tokens):
            raise self._bad(f"{self._tokens[self._at].text!r} is one thing too many")

    def _split(self, where: str) -> list[_Token]:
        strange = next((c for c in where if c == "\\" or ord(c) < 32), None)
        if strange is not None:
            raise self._bad(f"{strange!r} is not accepted")
        found = []
        at = 0
        end = len(where.rstrip(" "))
        while at < end:
            match = _TOKEN.match(where, at)
            if match is None:
                raise self._bad(_trouble(where[at:].lstrip(" ")))
            kind = str(match.lastgroup)
            found.append(_Token(kind, match.group(kind)))
            at = match.end()
        return found

    def _condition(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._bad("it is nested too deeply")
        self._part()
        while self._accept("AND", "OR"):
            self._part()
        self._depth -= 1

    def _part(self) -> None:
        while self._accept("NOT"):
            pass
        if self._accept("("):
            self._condition()
            self._expect(")", "a parenthesis is not closed")
            return
        if self._accept("TRUE", "FALSE"):
            return
        kind = self._value()
        if kind != "truth":
            self._test(kind)

    def _test(self, kind: str) -> None:
        if self._accept(*_COMPARISONS):
            self._literal(kind)
        elif self._accept("IS"):
            self._accept("NOT")
            self._expect("NULL", "IS is followed by NULL or NOT NULL")
        else:
            self._accept("NOT")
            if self._accept("LIKE", "ILIKE"):
                if kind != "text":
                    raise self._bad("LIKE is for text")
                self._literal("text")
            elif self._accept("BETWEEN"):
                self._literal(kind)
                self._expect("AND", "BETWEEN needs AND")
                self._literal(kind)
            elif self._accept("IN"):
                self._expect("(", "IN needs a list in parentheses")
                self._literal(kind)
                while self._accept(","):
                    self._literal(kind)
                self._expect(")", "a parenthesis is not closed")
            else:
                raise self._bad("a comparison is missing")

    def _value(self) -> str:
        """What is compared; its kind."""
        token = self._next()
        name = token.text.strip('`"').lower()
        if token.kind in ("text", "number"):
            return token.kind
        if token.kind == "word" and name in ("timestamp", "date") and self._peek("text"):
            self._next()
            return "time"
        if token.kind == "word" and self._accept("("):
            if name not in _FUNCTIONS:
                raise self._bad(f"{token.text} is no function that filters may use")
            if self._value() != "text":
                raise self._bad(f"{token.text} is for text")
            while self._accept(","):
                self._literal("text")
            self._expect(")", "a parenthesis is not closed")
            return _FUNCTIONS[name]
        if token.text.startswith('"'):  # the store takes it for a text and finds nothing
            raise self._bad(f"write the column {name} without double quotes")
        if token.kind not in ("word", "column"):
            raise self._bad(f"{token.text!r} stands where a column should")
        if name not in _kinds():
            raise self._bad(f"{name} is no column of a chunk; there are {', '.join(_kinds())}")
        return _kinds()[name]

    def _literal(self, kind: str) -> None:
        """A literal that a value of this kind can be compared with."""
        token = self._next()
        word = token.text.lower() if token.kind == "word" else ""
        if word == "null":
            return
        found = token.kind
        if word in ("timestamp", "date") and self._peek("text"):
            self._next()
            found = "time"
        if found not in ("text", "number", "time"):
            raise self._bad(f"{token.text!r} stands where a text or number should")
        if kind != found:
            raise self._bad(f"{token.text} cannot be compared with a {kind}")

    def _peek(self, kind: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at].kind == kind

    def _accept(self, *words: str) -> bool:
        if self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token.kind in ("word", "sign") and token.text.upper() in words:
                self._at += 1
                return True
        return False

    def _expect(self, word: str, otherwise: str) -> None:
        if not self._accept(word):
            raise self._bad(otherwise)

    def _next(self) -> _Token:
        if self._at >= len(self._tokens):
            raise self._bad("it ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _bad(self, why: str) -> ConfigError:
        return ConfigError(
            f"Cannot use the filter {self._where!r}: {why}.",
            next_step="Write one SQL condition that compares chunk columns with texts or numbers, "
            "for example source LIKE '%.md' AND page > 3.",
        )


def _trouble(rest: str) -> str:
    if rest[0] in "'\"`":
        return "a quote is not closed"
    if rest.startswith((";", "--", "/*")):
        return "comments and semicolons are not accepted"
    return f"{rest[:20]!r} is not accepted"
