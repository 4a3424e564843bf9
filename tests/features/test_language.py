from __future__ import annotations

import pytest

from rag_fti.features.language import language_of

SENTENCES = {
    "en": ("What is the maximum pressure of the pump?", "How often must the filter be cleaned?"),
    "de": ("Wie hoch ist der Druck in der Pumpe?", "Wie oft muss der Filter gereinigt werden?"),
    "fr": ("Où se trouve la clé de la porte ?", "Le café est fermé à Noël."),
    "es": ("¿Cuándo abre la estación?", "¿Con qué frecuencia se limpia el filtro?"),
    "it": (
        "Quando apre la stazione?",
        "Ogni quanto si pulisce il filtro?",
        "Chi firma il rapporto?",
    ),
    "pt": ("Quantas turbinas há na estação?", "Não abra as válvulas com o motor ligado."),
    "nl": ("Wat is de maximale druk van de pomp?", "Wie ondertekent het rapport?"),
    "sv": ("En stor hund sover på golvet.", "Hur många turbiner finns det på stationen?"),
    "pl": ("Jak często należy czyścić filtr, jak jest za zimno?", "Ile turbin jest na stacji?"),
    "ru": ("Перед запуском насоса проверьте давление.",),
    "ja": ("本は窓のそばの棚にあります。",),
}


@pytest.mark.parametrize(
    ("language", "text"), [(name, text) for name, texts in SENTENCES.items() for text in texts]
)
def test_languages_of_short_sentences(language: str, text: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "| P200 | 120 | 32 | 750 | 249 |",
        "def a(b, c): return a",
        "Power (W): 120; Flow (l/min): 32; Mass (kg): 5",
        "Size: A; Class: E; Unit: a",
        "import os\n\ndef main(args):\n    os.remove(args[0])",
        "En stor hund",
    ],
)
def test_tables_and_code_are_in_no_language(text: str) -> None:
    assert language_of(text) == ""
