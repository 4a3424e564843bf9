"""E-mail messages."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from email.message import EmailMessage, MIMEPart

from rag_fti.errors import SourceError
from rag_fti.features.loading.encoding import decode
from rag_fti.features.loading.formats import format_of
from rag_fti.features.loading.markup import fragment_to_markdown
from rag_fti.features.loading.parsed import Limits, Parsed

_HEADERS = ("From", "To", "Cc", "Date", "Subject")


def parse_email(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """A message: its headers, its body (plain text preferred), and its attachments.

    Attachments that can be read follow the body, each under its name; others are named.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data[:64]:
        data = decode(data).encode("utf-8")
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    if not message.keys():
        raise ValueError("no message headers in it")
    lines = [f"{name}: {value}" for name in _HEADERS if (value := _header(message, name))]
    names: list[str] = []
    bodies: list[str] = []
    attached: list[str] = []
    body = message.get_body(preferencelist=("plain", "html"))
    if body is not None:
        bodies.append(_text_of(body))
    for part in _parts(message):
        if part is body:
            continue
        if name := _file_name(part):
            names.append(name)
            if text := _attachment(name, part, limits):
                attached.append(f"# Attachment: {name}\n\n{text}")
        elif body is None and part.get_content_maintype() == "text":
            bodies.append(_text_of(part))
    if names:
        lines.append(f"Attachments: {', '.join(names)}")
    text = "\n\n".join(["\n".join(lines), *(b.strip() for b in [*bodies, *attached] if b.strip())])
    return Parsed(text, title=_header(message, "Subject"), media_type=media_type)


def _parts(part: MIMEPart) -> Iterator[MIMEPart]:
    """The leaves of a message; a message inside it is one."""
    if part.is_multipart() and part.get_content_type() != "message/rfc822":
        for inner in part.iter_parts():
            yield from _parts(inner)
    else:
        yield part


def _file_name(part: MIMEPart) -> str:
    """What an attachment is called; empty for what is no attachment."""
    if part.get_content_type() == "message/rfc822":
        return f"{_header(_message_in(part), 'Subject') or 'message'}.eml"
    return part.get_filename() or ""


def _message_in(part: MIMEPart) -> MIMEPart:
    inner = part.get_payload(0)
    assert isinstance(inner, MIMEPart)
    return inner


def _attachment(name: str, part: MIMEPart, limits: Limits) -> str:
    """What an attachment says; empty where it is of an unknown kind."""
    from rag_fti.features.loading.parsing import parse  # which reads e-mail with this module

    if format_of(name) is None:
        return ""
    if part.get_content_type() == "message/rfc822":
        content: object = _message_in(part).as_bytes()
    else:
        content = part.get_payload(decode=True)
    try:
        parsed = parse(content if isinstance(content, bytes) else b"", name, limits)
    except SourceError as error:
        return f"(not read: {error})"
    return "\n\n".join([parsed.text, *parsed.pages]).strip()


def _header(message: MIMEPart, name: str) -> str:
    try:
        value = message.get(name)
    except (ValueError, IndexError, AttributeError, TypeError):
        return ""  # the standard library's parser fails on some damaged headers
    return " ".join(str(value).split()) if value is not None else ""


def _text_of(part: MIMEPart) -> str:
    payload = part.get_payload(decode=True)
    raw = payload if isinstance(payload, bytes) else str(part.get_payload()).encode("utf-8")
    charset = part.get_content_charset()
    try:
        text = raw.decode(charset) if charset else decode(raw)
    except (LookupError, UnicodeDecodeError):
        text = decode(raw)
    return fragment_to_markdown(text) if part.get_content_type() == "text/html" else text
