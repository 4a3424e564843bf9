"""Bytes to text."""

# ruff: noqa: RUF001 - letters and marks of all kinds

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Sequence

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 256 * 1024
_TELLING_BYTES = 32 * 1024
_UNREADABLE_SHARE = 0.05
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\ufffd]")

# Letters outside ASCII of the languages that a code page is for: the usual ones, then, behind a
# space, those that count half. The last of the western ones is for several languages in a text.
_WEST = (
    "éèàêç âîôûùëïüœÿæ", "áéíóñúü", "ãçáéíóú õâêôà", "äöüß éà", "èàéìùò íóîú", "äöå éü",
    "øåæ éöäü", "éëïöü èáíóúê", "áíðóöéúæ ýþ", "éàóèíçòúïü·", " éèàêçáíóñúüãõâôîûäöåøæùìòëïß",
)  # fmt: skip
_EAST = (
    "ąęłóśżćńź", "íáéěřščžýůúťďňó", "áíéčžýšúťňô ľäďŕĺó", "áéöóőíüúű", "čšžćđ", "ăîţşâ",
)  # fmt: skip
_BALTIC = ("ėšųįžąčūę", "āīēšņļūžčķģ", "äõüö šž")
_TURKISH = ("ıüşçğö âîû",)
_CYRILLIC = (
    "оеаинтсрвлкмдпуяь ыгзбчйхжшюцщэфёъ",
    "оаинівтерсклудмпья згбчйхжїшюцщєфґ",
    "аоиетнрсвлкдпмзъя гбучйхжшюцщьф",
)
_GREEK = ("αοιετσνηυρπκμλςίόάέή γδωύθχώφβξζψϊϋΐ",)
_HEBREW = ("יוהלאמרתבשנ קדחפעכםטגסזצןץךף",)
_ARABIC = ("اليمنرتوبةعدسفهكحأق جشطصخذضغزثئءىظإآؤ،؟",)
_THAI = ("านรอกเงมยลวดทสตะปบคหี่้ัิ",)
_LATIN = {
    "cp1252": _WEST, "cp1250": _EAST, "iso8859_2": _EAST, "cp1254": _TURKISH, "cp1257": _BALTIC,
    "iso8859_13": _BALTIC, "cp850": _WEST, "mac_roman": _WEST,
}  # fmt: skip
_OTHER_SCRIPTS = {
    "cp1251": _CYRILLIC, "koi8_r": _CYRILLIC, "koi8_u": _CYRILLIC, "cp866": _CYRILLIC,
    "iso8859_5": _CYRILLIC, "cp1253": _GREEK, "iso8859_7": _GREEK, "cp1255": _HEBREW,
    "cp1256": _ARABIC, "iso8859_6": _ARABIC, "cp874": _THAI,
}  # fmt: skip
_MANY_BYTES = ("cp932", "euc_jp", "gb18030", "big5", "cp949")
_HIGH = re.compile(rb"[\x80-\xff]")
_HIGH_RUN = re.compile(rb"[\x80-\xff]{3,}")
_LEAST_FIT = 0.75
"""Share of letters that fit. Of texts in one of the other scripts .85 and more do, in a code page
of theirs; of Chinese, Japanese and Korean ones at most .71 in any."""
_LETTER = r"[^\W\d_]"
_SIGNS = "[«»„“”‘‚¿¡§•µ©™®²³ªº°]"
_SYMBOL = re.compile(
    f"[’–—…\xa0]|(?<!{_LETTER}){_SIGNS}|{_SIGNS}(?!{_LETTER})|(?<!{_LETTER})[£€±½¼¾×÷](?!{_LETTER})"
)
"""Symbols where a text may have them, which is not amid letters."""


def decode(data: bytes) -> str:
    """The text of a file whose encoding nobody told.

    A byte order mark decides; then UTF-8 if it fits; then the most likely legacy encoding.

    Raises:
        ValueError: If the bytes look like no text in any encoding.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _checked(data.decode(encoding, errors="replace"))
    if guess := _wide_without_mark(data):
        return _checked(data.decode(guess, errors="replace"))
    try:
        return _checked(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":  # a truncated last character
            return _checked(data.decode("utf-8", errors="replace"))
    return _checked(data.decode(_likely_encoding(data), errors="replace"))


def _wide_without_mark(data: bytes) -> str:
    """UTF-16 or UTF-32 of mostly Latin text shows as regular zero bytes."""
    sample = data[:4096]
    if len(sample) < 4 or b"\x00" not in sample:
        return ""
    zeros = [sample[offset::4].count(0) / max(1, len(sample[offset::4])) for offset in range(4)]
    if all(share > 0.9 for share in zeros[1:]) and zeros[0] < 0.1:
        return "utf-32-le"
    if all(share > 0.9 for share in zeros[:3]) and zeros[3] < 0.1:
        return "utf-32-be"
    if zeros[1] > 0.6 and zeros[3] > 0.6 and zeros[0] < 0.2 and zeros[2] < 0.2:
        return "utf-16-le"
    if zeros[0] > 0.6 and zeros[2] > 0.6 and zeros[1] < 0.2 and zeros[3] < 0.2:
        return "utf-16-be"
    return ""


def _likely_encoding(data: bytes) -> str:
    """The code page in which most letters are those of one of its languages; Western on a tie."""
    lines = (line for line in data.split(b"\n") if not line.isascii())
    sample = b"\n".join(lines)[:_TELLING_BYTES]
    letters = len(_HIGH.findall(sample))
    latin = sum(map(len, _HIGH_RUN.findall(sample))) <= 0.5 * letters
    fits = {page: _fit(_read(sample, page).lower(), langs) for page, langs in _LATIN.items()}
    if not latin:
        fits |= {page: _fit(_read(sample, page), langs) for page, langs in _OTHER_SCRIPTS.items()}
    best = max(fits, key=lambda page: fits[page])
    if latin or fits[best] >= _LEAST_FIT * letters:
        return best
    from charset_normalizer import from_bytes

    found = from_bytes(sample, cp_isolation=[*_MANY_BYTES, *_OTHER_SCRIPTS]).best()
    return found.encoding if found is not None else best


def _read(sample: bytes, page: str) -> str:
    return sample.decode(page, errors="replace")


def _fit(text: str, languages: Sequence[str]) -> float:
    """How many characters outside ASCII are symbols in their place or letters of one language."""
    counts = Counter(text)
    fits = []
    for letters in languages:
        usual, _, rare = letters.partition(" ")
        fits.append(sum(counts[c] for c in usual) + sum(counts[c] for c in rare) / 2)
    return len(_SYMBOL.findall(text)) + max(fits)


def _checked(text: str) -> str:
    sample = text[:_SAMPLE_BYTES]
    bad = len(_CONTROLS.findall(sample))
    if bad > 16 and bad > _UNREADABLE_SHARE * len(sample):
        raise ValueError("binary content: no text in any known encoding")
    return text
