"""E-mail messages."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage, MIMEPart

from rag_fti.features.loading.encoding import decode
from rag_fti.features.loading.markup import fragment_to_markdown
from rag_fti.features.loading.parsed import Limits, Parsed

_HEADERS = ("From", "To", "Cc", "Date", "Subject")


def parse_email(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """A message: its headers, its body (plain text preferred), and names of attachments."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data[:64]:
        data = decode(data).encode("utf-8")
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    if not message.keys():
        raise ValueError("no message headers in it")
    lines = [f"{name}: {value}" for name in _HEADERS if (value := _header(message, name))]
    attachments = []
    bodies = []
    body = message.get_body(preferencelist=("plain", "html"))
    if body is not None:
        bodies.append(_text_of(body))
    for part in message.walk():
        if part.is_multipart() or part is body:
            continue
        if name := part.get_filename():
            attachments.append(name)
        elif body is None and part.get_content_maintype() == "text":
            bodies.append(_text_of(part))
    if attachments:
        lines.append(f"Attachments: {', '.join(attachments)}")
    text = "\n\n".join(["\n".join(lines), *(b.strip() for b in bodies if b.strip())])
    return Parsed(text, title=_header(message, "Subject"), media_type=media_type)


def _header(message: EmailMessage, name: str) -> str:
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
