# ruff: noqa: RUF001 - texts in many scripts
from __future__ import annotations

import pytest

from rag_fti.features.loading.encoding import decode
from rag_fti.features.loading.markup import decode_markup

TEXTS = {
    "cp1252 latin-1 mac_roman": (
        "Le café est fermé à Noël. Vérifiez la pression avant de démarrer la pompe.",
        "¿Qué año es? Mañana será otro día.",
        "Die Größe der Kühlanlage beträgt fünf Meter; der Ölwechsel ist fällig.",
        "La qualità dell'acqua verrà controllata ogni lunedì.",
    ),
    "cp1252 latin-1": (
        "El señor Muñoz vive en Logroño.",
        "O João não comprou pão.",
        "Kvinnan åt köttbullar.",
        "Æblerne er røde.",
        "Þú mátt ekki opna dyrnar fyrr en klukkan átta.",
        "De coördinator geeft de patiënt een ruïne.",
        "Muñoz, Søren, Zoë, François, Müller",
        "Item;Price\nTea;£4.50\nBun;£1.20\n",
        "20 °C ±1, ½ price, 3 m³. Copyright © 2024.",
    ),
    "cp1252": (
        "It’s the operator’s duty — see page 4 — to “close” it.",
        "Price: €20 or £15… Widget™",
        "öäüß",
    ),
    "cp1250 iso8859-2": (
        "Proszę sprawdzić ciśnienie w zbiorniku przed włączeniem pompy.",
        "Příliš žluťoučký kůň úpěl ďábelské ódy.",
        "Môj otec žije na východnom Slovensku.",
        "A szivattyú indítása előtt ellenőrizze a nyomást.",
        "Svi uređaji moraju biti isključeni prije nego što počne održavanje.",
    ),
    "cp1254": ("Pompayı çalıştırmadan önce tanktaki basıncı kontrol edin.",),
    "cp1257": (
        "Prieš paleisdami siurblį patikrinkite slėgį rezervuare.",
        "Visām ierīcēm jābūt izslēgtām, pirms sākas apkope.",
        "Kõik seadmed peavad olema välja lülitatud.",
    ),
    "cp1251 koi8-r cp866 iso8859-5": (
        "Добрый день, как дела?",
        "Перед запуском насоса проверьте давление в баке.",
    ),
    "cp1251 koi8-u": ("Перед запуском насоса перевірте тиск у баку.",),
    "cp1253 iso8859-7": ("Πριν από την εκκίνηση της αντλίας ελέγξτε την πίεση.",),
    "cp1255 iso8859-8": ("לפני הפעלת המשאבה בדקו את הלחץ במיכל.",),
    "cp1256 iso8859-6": ("تحقق من الضغط في الخزان قبل تشغيل المضخة.",),
    "cp874": ("ตรวจสอบความดันในถังก่อนเริ่มเดินปั๊ม",),
    "cp932 euc-jp": (
        "ポンプを始動する前にタンクの圧力を確認してください。本は窓のそばの棚にあります。"
        "保守を始める前にすべての機器の電源を切る必要があります。",
    ),
    "gb18030": ("启动水泵之前请检查水箱的压力。",),
    "big5": ("啟動水泵之前請檢查水箱的壓力。",),
    "cp949": ("펌프를 시동하기 전에 탱크의 압력을 확인하십시오.",),
}


@pytest.mark.parametrize(
    ("encoding", "text"),
    [(e, text) for encodings, texts in TEXTS.items() for e in encodings.split() for text in texts],
)
def test_legacy_encodings_of_short_texts_are_told_apart(encoding: str, text: str) -> None:
    assert decode(text.encode(encoding)) == text


def test_a_single_letter_late_in_an_english_text_counts() -> None:
    text = "The pump must be stopped before the cover is opened.\n" * 8000 + "Señor Muñoz"
    assert decode(text.encode("cp1252")) == text


def test_pages_said_to_be_latin_1_are_read_as_browsers_do() -> None:
    page = "<meta charset='iso-8859-1'><p>It’s “£5”</p>"
    assert decode_markup(page.encode("cp1252")) == page
    page = "<p>Preis für Öl: 5 €</p>"
    assert decode_markup(page.encode("cp1252")) == page
