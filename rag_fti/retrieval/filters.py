"""Filters over chunks: the caller's own, and the collections a key may see."""

from __future__ import annotations

from collections.abc import Sequence

from rag_fti.errors import ConfigError

_QUOTES = "'\"`"
MAX_FILTER_CHARS = 4000


def restrict(where: str | None, collections: Sequence[str] | None) -> str | None:
    """A filter that holds ``where`` inside the given collections.

    Args:
        where: SQL condition from a caller; may come from an untrusted client.
        collections: Names that may be seen; None means all, an empty sequence none.

    Returns:
        One SQL condition, or None for no condition.

    Raises:
        ConfigError: If ``where`` could reach outside the parentheses it is put into.
    """
    parts = []
    if collections is not None:
        names = ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(set(collections)))
        parts.append(f"collection IN ({names})" if names else "collection IS NULL")
    if where and where.strip():
        check_condition(where)
        parts.append(f"({where.strip()})")
    return " AND ".join(parts) or None


def check_condition(where: str) -> None:
    """Refuse a condition that is more than one expression.

    Parentheses must balance and never close more than was opened, quotes must be closed, and
    comments, semicolons and backslashes are not accepted: then ``(where)`` is one operand
    whatever it says, and ``AND collection IN (…)`` beside it always holds.

    Raises:
        ConfigError: If the condition is not of that form.
    """
    if len(where) > MAX_FILTER_CHARS:
        raise ConfigError(
            f"The filter has {len(where)} characters, at most {MAX_FILTER_CHARS} are accepted."
        )
    depth = 0
    quote = ""
    for position, char in enumerate(where):
        if char == "\\" or ord(char) < 32:
            raise _bad(where, f"{char!r} is not accepted")
        if quote:
            # A doubled quote closes and opens again, which comes to the same.
            quote = "" if char == quote else quote
        elif char in _QUOTES:
            quote = char
        elif char == ";" or where.startswith(("--", "/*"), position):
            raise _bad(where, "comments and semicolons are not accepted")
        else:
            depth += {"(": 1, ")": -1}.get(char, 0)
            if depth < 0:
                raise _bad(where, "a parenthesis closes that was not opened")
    if depth or quote:
        raise _bad(where, "a parenthesis or quote is not closed")


def _bad(where: str, why: str) -> ConfigError:
    return ConfigError(
        f"Cannot use the filter {where!r}: {why}.",
        next_step="Write one SQL condition over the chunk columns, for example "
        "source LIKE '%.md' AND page > 3.",
    )
