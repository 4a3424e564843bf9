"""The chat page in a real browser. Run: ``pytest -m browser tests/serving/test_web.py``.

Needs Chromium on the path (or its path in ``RAG_FTI_CHROMIUM``) and ``pip install playwright``.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rag_fti.registry import Registry
from serving.auth import add_key
from tests.inference.corpus import CORPUS, FirstSentence, fill
from tests.serving.conftest import Running, Start

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need: pip install playwright"
)

pytestmark = pytest.mark.browser

QUESTION = "Who keeps the cellar key?"
ANSWER = "The cellar key is kept by Ada Byrne."
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}

SOME_TEXT = "() => document.querySelector('.answer-text').textContent.length > 5"

INJECTIONS = """<img src=x onerror="window.pwned = 1"> guards the treasure chamber.

<script>window.pwned = 2</script> [open](javascript:window.pwned=3) treasure.

![treasure](http://attacker.example/leak.png) </passage> <svg onload="window.pwned=4">"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("RAG_FTI_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on the path; install it (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        yield opened
        opened.close()


@dataclass
class Tab:
    """A page, what its console said, and what it asked the network for."""

    page: Any
    url: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    expected: str = ""
    """Pattern of console errors that the test provokes."""

    def ask(self, question: str = QUESTION, *, wait: bool = True) -> Any:
        """Type a question and send it; the turn."""
        turns = self.page.locator(".turn")
        before = turns.count()
        self.page.locator("#question").fill(question)
        self.page.keyboard.press("Enter")
        turn = turns.nth(before)
        if wait:
            turn.locator(".answer-foot").wait_for()
        return turn

    def unexpected(self) -> list[str]:
        return [p for p in self.problems if not (self.expected and re.search(self.expected, p))]


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Open the page of a server; a console error or a foreign request fails the test."""
    opened: list[tuple[Any, Tab]] = []

    def made(
        server: Running | str,
        *,
        size: dict[str, int] | None = None,
        ready: bool = True,
        script: str = "",
        **options: Any,
    ) -> Tab:
        url = server if isinstance(server, str) else server.url
        context = browser.new_context(viewport=size or DESKTOP, **options)
        page = context.new_page()
        page.set_default_timeout(15_000)
        tab = Tab(page, url)
        opened.append((context, tab))
        page.on(
            "console",
            lambda m: tab.problems.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda e: tab.problems.append(str(e)))
        page.on("request", lambda r: tab.requests.append(r.url))
        if script:
            page.add_init_script(script)
        page.goto(url + "/")
        if ready:
            page.locator("#model:enabled").wait_for()
        return tab

    yield made
    for context, tab in opened:
        context.close()
        assert tab.unexpected() == []
        assert [u for u in tab.requests if not u.startswith((tab.url, "blob:"))] == []


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.id || document.activeElement.className"))


def test_a_question_is_answered_word_by_word_and_its_source_opens(start: Start, visit: Any) -> None:
    tab = visit(start(FirstSentence(delay=0.05)))
    page = tab.page
    turn = tab.ask(wait=False)
    page.wait_for_function(SOME_TEXT)
    early = turn.locator(".answer-text").inner_text()
    assert page.locator("#stop").is_visible()
    assert turn.get_attribute("aria-busy") == "true"
    turn.locator(".answer-foot").wait_for()
    text = turn.locator(".answer-text").inner_text().replace("\u00a0", " ").strip()
    assert text == f"{ANSWER} 1"
    assert len(early) < len(text) and text.startswith(early.strip()[:5])
    assert "first-sentence" in turn.locator(".about").inner_text()

    source = turn.locator(".source")
    assert source.count() == 1
    assert source.locator(".quote").inner_text() == ANSWER
    assert "guide/keys.md" in source.inner_text()

    chip = turn.get_by_role("button", name=re.compile("^Source 1: keys")).first
    chip.click()
    panel = page.get_by_role("dialog")
    panel.locator("mark").wait_for()
    assert panel.locator("mark").inner_text() == ANSWER
    assert panel.locator(".panel-text").inner_text() == CORPUS["guide/keys.md"]
    page.locator("#panel-close").click()
    assert not panel.is_visible()
    assert focused(page) == "chip"


def test_the_cited_words_are_scrolled_into_view(start: Start, visit: Any) -> None:
    filler = "\n\n".join(f"Paragraph {n} says nothing of note. \U0001f980" for n in range(300))
    sentence = "The lighthouse lamp burns whale-free oil."
    corpus = {"guide/light.md": f"{filler}\n\n{sentence}\n\n{filler}"}
    tab = visit(start(corpus=corpus))
    turn = tab.ask("Which oil does the lighthouse lamp burn?")
    turn.locator("button.chip").first.click()
    mark = tab.page.locator("#panel mark")
    mark.wait_for()
    # Crabs are two UTF-16 units each: counted in units, the mark would be 300 off.
    assert mark.inner_text() == sentence
    tab.page.wait_for_function(
        """() => {
          const box = document.querySelector('#panel-text').getBoundingClientRect();
          const mark = document.querySelector('#panel mark').getBoundingClientRect();
          return mark.top >= box.top && mark.bottom <= box.bottom;
        }"""
    )


def test_words_are_found_again_in_a_changed_document(start: Start, visit: Any) -> None:
    tab = visit(start())
    script = """async ([text, citation]) => {
      const { locate } = await import(new URL('web/offsets.js', document.baseURI).href);
      return locate(text, citation);
    }"""

    def locate(text: str, start: int, end: int, words: str) -> Any:
        citation = {"start": start, "end": end, "text": words}
        return tab.page.evaluate(script, [text, citation])

    assert locate("abc def", 4, 7, "def") == {"start": 4, "end": 7, "moved": False}
    assert locate("\U0001f980 def", 2, 5, "def") == {"start": 3, "end": 6, "moved": False}
    assert locate("new. abc def", 4, 7, "def") == {"start": 9, "end": 12, "moved": True}
    assert locate("def and def", 7, 10, "def") == {"start": 8, "end": 11, "moved": True}
    assert locate("all new", 4, 7, "def") is None
    assert locate("ab", 4, 7, "def") is None


def test_a_source_is_shown_as_it_was_cited(start: Start, visit: Any) -> None:
    server = start()
    tab = visit(server)
    page = tab.page
    turn = tab.ask()
    changed = f"A new beginning. {CORPUS['guide/keys.md']}"
    fill(server.services.store, {"guide/keys.md": changed})
    turn.locator("button.chip").click()
    page.locator("#panel mark").wait_for()
    assert page.locator("#panel-text").inner_text() == CORPUS["guide/keys.md"]
    assert page.locator("#panel-notice").inner_text() == ""
    page.keyboard.press("Escape")

    # The same where the old state has been cleaned up: the present text, and a word about it.
    gone = {"error": {"message": "There is no such snapshot."}}
    page.route(re.compile(r"/v1/documents/.*at="), lambda r: r.fulfill(status=404, json=gone))
    tab.expected = "status of 404"
    page.get_by_role("button", name="New conversation").click()
    fill(server.services.store, CORPUS)
    turn = tab.ask()
    fill(server.services.store, {"guide/keys.md": changed})
    turn.locator("button.chip").click()
    page.get_by_text("the cited words were found again").wait_for()
    assert page.locator("#panel mark").inner_text() == ANSWER
    assert page.locator("#panel-text").inner_text() == changed


def test_an_answer_that_breaks_off_is_no_answer(start: Start, visit: Any) -> None:
    tab = visit(start())
    page = tab.page
    piece = (
        'data: {"id": "a", "model": "m", "choices": [{"delta": {"content": "Half an"}}]}\r\n\r\n'
    )
    error = 'data: {"error": {"message": "The model ran out of memory."}}\n\n'
    broken = {"": "ended before the answer was complete", error: "ran out of memory"}
    for tail, message in broken.items():
        page.route("**/v1/chat/completions", streamed(piece + tail))
        turn = tab.ask(wait=False)
        turn.get_by_role("alert").wait_for()
        assert message in turn.get_by_role("alert").inner_text()
        assert "Half an" in turn.locator(".answer-text").inner_text()
        assert turn.locator(".answer-foot").count() == 0
        page.unroute("**/v1/chat/completions")
    turn.get_by_role("button", name="Try again").click()
    turn.locator(".answer-foot").wait_for()
    assert ANSWER in turn.inner_text() and "Half an" not in turn.inner_text()


def streamed(body: str) -> Callable[[Any], None]:
    """A route handler that answers with these server-sent events."""

    def handler(route: Any) -> None:
        route.fulfill(body=body, headers={"Content-Type": "text/event-stream"})

    return handler


def test_an_abstention_is_shown_as_one(start: Start, visit: Any) -> None:
    tab = visit(start())
    turn = tab.ask("Whose zeppelin?")
    assert turn.locator(".answer.abstained").count() == 1
    assert turn.locator(".source").count() == 0
    assert "do not answer" in turn.inner_text()
    assert "No answer was found." in tab.page.locator("#announcer").inner_text()


def test_history_is_sent_and_a_new_conversation_forgets_it(start: Start, visit: Any) -> None:
    model = FirstSentence()
    tab = visit(start(model))
    tab.ask()
    tab.ask("When does the office open?")
    sent = [m["content"] for m in model.requests[-1].messages]
    assert QUESTION in sent and ANSWER in sent  # without its marker
    tab.page.get_by_role("button", name="New conversation").click()
    assert tab.page.locator(".turn").count() == 0
    assert tab.page.locator("#empty").is_visible()
    assert focused(tab.page) == "question"
    tab.ask("Do dogs travel free?")
    assert QUESTION not in [m["content"] for m in model.requests[-1].messages]


def test_escape_stops_the_answer_and_it_can_be_tried_again(start: Start, visit: Any) -> None:
    model = FirstSentence(delay=0.3)
    tab = visit(start(model))
    turn = tab.ask(wait=False)
    tab.page.wait_for_function(SOME_TEXT)
    tab.page.keyboard.press("Escape")
    turn.get_by_text("Stopped.").wait_for()
    assert focused(tab.page) == "question"
    deadline = time.monotonic() + 5
    while not model.cancelled and time.monotonic() < deadline:
        time.sleep(0.05)
    assert model.cancelled == 1
    model.delay = 0.0
    turn.get_by_role("button", name="Try again").click()
    turn.locator(".answer-foot").wait_for()
    assert ANSWER in turn.locator(".answer-text").inner_text()
    assert tab.page.locator(".turn").count() == 1


def test_feedback_is_stored(start: Start, visit: Any) -> None:
    server = start()
    tab = visit(server)
    turn = tab.ask()
    turn.get_by_role("button", name="Good answer").click()
    turn.get_by_text("your feedback is stored").wait_for()
    turn.get_by_role("button", name="Bad answer").click()
    turn.get_by_label("What would the right answer have been?").fill("By Bo Byrne.")
    turn.get_by_label("Anything else?").fill("Ada left.")
    turn.get_by_role("button", name="Send feedback").click()
    turn.locator(".down[aria-pressed='true']").wait_for()
    assert turn.locator("form.feedback").is_hidden()
    server.services.log.flush()
    rows = server.services.store.rows("feedback").to_pylist()
    assert sorted((r["rating"], r["correction"], r["comment"]) for r in rows) == [
        (-1, "By Bo Byrne.", "Ada left."),
        (1, "", ""),
    ]
    logged = server.services.store.rows("inference_log").to_pylist()
    assert {r["response_id"] for r in rows} == {r["response_id"] for r in logged}


def test_a_document_is_added_and_answers(start: Start, visit: Any) -> None:
    tab = visit(start())
    page = tab.page
    page.get_by_role("button", name="Add documents").click()
    note = {
        "name": "orchard.md",
        "mimeType": "text/markdown",
        "buffer": b"# Orchard\n\nThe quince harvest begins in October.\n",
    }
    page.set_input_files("#files", [note])
    page.locator(".result.stored").wait_for()
    assert re.search(r"Added · 1 chunk\b", page.locator(".result").first.inner_text())
    page.set_input_files("#files", [{**note, "buffer": note["buffer"] + b"\nQuinces are sour.\n"}])
    page.get_by_text(re.compile("^Updated")).wait_for()
    broken = {"name": "broken.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7 nothing"}
    tab.expected = "status of 4"
    page.set_input_files("#files", [broken])
    page.locator(".result.failed").wait_for()
    assert len(page.locator(".result.failed .result-state").inner_text()) > 10
    page.keyboard.press("Escape")
    turn = tab.ask("When does the quince harvest begin?")
    assert "October" in turn.locator(".answer-text").inner_text()


def test_a_dropped_file_is_added(start: Start, visit: Any) -> None:
    tab = visit(start())
    data = tab.page.evaluate_handle(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(["The barn owl nests in the bell tower."], "owl.txt"));
          return data;
        }"""
    )
    tab.page.dispatch_event("body", "dragenter", {"dataTransfer": data})
    tab.page.locator("#veil").wait_for()
    tab.page.dispatch_event("body", "drop", {"dataTransfer": data})
    tab.page.locator(".result.stored").wait_for()
    assert tab.page.locator("#veil").is_hidden()


def test_text_from_documents_stays_text(start: Start, visit: Any) -> None:
    corpus = {"<img src=x onerror=window.pwned=5>.md": INJECTIONS}
    tab = visit(start(corpus=corpus))
    page = tab.page
    turn = tab.ask("Who guards the treasure chamber? <b onclick=window.pwned=6>")
    assert '<img src=x onerror="window.pwned = 1">' in turn.locator(".answer-text").inner_text()
    assert "<b onclick" in turn.locator(".question").inner_text()
    turn.locator("button.chip").first.click()
    page.locator("#panel mark").wait_for()
    assert page.locator("#panel-text").inner_text() == INJECTIONS
    added = {"name": "<img src=x onerror=window.pwned=7>.txt", "mimeType": "text/plain"}
    page.set_input_files("#files", [{**added, "buffer": b"Some text about nothing."}])
    page.locator(".result.stored, .result.failed").wait_for(state="attached")
    assert page.evaluate("window.pwned") is None
    assert page.locator("img, main a, main script, #panel a, b").count() == 0


def test_markup_from_the_model_stays_text(start: Start, visit: Any) -> None:
    class Hostile(FirstSentence):
        def reply(self, request: Any) -> str:
            return '**Bold** <img src=x onerror="window.pwned=1"> [x](javascript:alert(1)) [1] [7]'

    tab = visit(start(Hostile()))
    turn = tab.ask()
    shown = turn.locator(".answer-text").inner_text()
    assert "**Bold** <img" in shown and "[x](javascript:alert(1))" in shown
    assert turn.locator(".answer-text a, .answer-text img, .answer-text strong").count() == 0
    assert tab.page.evaluate("window.pwned") is None


def test_an_empty_page_offers_questions_that_the_documents_answer(start: Start, visit: Any) -> None:
    lines = [
        "Driftlog 4.2 is supported until 30 June 2025.",
        "The flow meter of the plankton nets is calibrated.",
    ]
    sources = ["corpus/it/driftlog-release-notes.md", "elsewhere/plankton-tow-protocol.txt"]
    examples = [
        {
            "question": "Until when is Driftlog 4.2 supported?",
            "source": "driftlog-release-notes.md",
        },
        {"question": "Where is the flow meter calibrated?", "source": "plankton-tow-protocol.pdf"},
    ]
    corpus = dict(zip(sources, lines, strict=True))
    tab = visit(start(corpus=corpus, serving__examples=examples))
    tab.page.locator(".example").wait_for()
    assert tab.page.locator(".example").all_inner_texts() == [
        "Until when is Driftlog 4.2 supported?"
    ]
    tab.page.locator(".example").click()
    tab.page.locator(".answer-foot").wait_for()
    assert "30 June 2025" in tab.page.locator(".answer-text").inner_text()
    assert not tab.page.locator("#empty").is_visible()


def test_an_empty_store_asks_for_documents(start: Start, visit: Any) -> None:
    tab = visit(start(corpus={}))
    page = tab.page
    page.get_by_text("There are no documents yet.").wait_for()
    page.get_by_role("button", name="Add the first ones").click()
    note = {"name": "a.md", "mimeType": "text/markdown", "buffer": b"The quince is yellow."}
    page.set_input_files("#files", [note])
    page.locator(".result.stored").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#no-documents").is_hidden()
    assert "yellow" in tab.ask("Which colour has the quince?").inner_text()


def test_the_version_that_answers_is_picked_and_shown(
    start: Start, visit: Any, tmp_path: Path
) -> None:
    from rag_fti.inference import ServedModel

    files = tmp_path / "adapter"
    files.mkdir()
    (files / "adapter_config.json").write_text("{}")
    registry = Registry.open(str(tmp_path / "data" / "registry"))
    for _ in range(2):
        registry.publish("handbook", files, {"base_model": {"reference": "tiny"}})
    registry.set_alias("handbook", "champion", 1, who="test", why="first")

    def opener(_: Any, reference: str) -> ServedModel:
        return ServedModel(FirstSentence(reference or "handbook@1"))

    tab = visit(start(opener=opener))
    picker = tab.page.get_by_label("Model that answers")
    options = picker.locator("option").all_inner_texts()
    assert "champion → handbook@1" in options and {"handbook@1", "handbook@2"} <= set(options)
    assert options.count("champion → handbook@1") == 1
    assert "handbook@1" in tab.ask().locator(".about").inner_text()
    picker.select_option("handbook@2")
    assert "handbook@2" in tab.ask().locator(".about").inner_text()
    registry.set_alias("handbook", "champion", 2, who="test", why="better")
    picker.select_option(label="champion → handbook@1")
    deadline = time.monotonic() + 10
    while "handbook@2" not in tab.ask().locator(".about").inner_text():
        assert time.monotonic() < deadline
    picker.locator("option", has_text="champion → handbook@2").wait_for(state="attached")


def test_the_key_is_asked_for_and_kept_in_the_tab_only(
    start: Start, visit: Any, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.yaml"
    _, key = add_key(keys, name="reader", scopes=["chat", "search"], collections=["*"])
    tab = visit(start(serving__keys_file=str(keys)), ready=False)
    tab.expected = "status of 40[13]"
    page = tab.page
    dialog = page.get_by_role("dialog", name="API key")
    dialog.wait_for()
    assert focused(page) == "key-value"
    page.get_by_label("Key", exact=True).fill("rag-wrong")
    page.keyboard.press("Enter")
    dialog.get_by_text("did not accept").wait_for()
    page.get_by_label("Key", exact=True).fill("rag-ключ")
    page.keyboard.press("Enter")
    dialog.get_by_text("characters that no key has").wait_for()
    page.get_by_label("Key", exact=True).fill(f"\u200b{key}\u00a0")
    page.keyboard.press("Enter")
    page.locator("#model:enabled").wait_for()
    assert not dialog.is_visible()
    assert ANSWER in tab.ask().locator(".answer-text").inner_text()
    assert page.evaluate("Object.values(sessionStorage)").count(key) == 1
    assert key not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    # The key lacks the scope to ingest: the server's words are shown, no new key is asked for.
    page.set_input_files("#files", [{"name": "a.txt", "mimeType": "text/plain", "buffer": b"x"}])
    page.locator(".result.failed").wait_for(state="attached")
    assert "scope" in page.locator(".result-state").text_content()
    page.locator("#key-open").click()
    page.get_by_role("button", name="Forget the key").click()
    assert page.evaluate("Object.values(sessionStorage)").count(key) == 0


def test_a_busy_server_counts_down(start: Start, visit: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    _, key = add_key(
        keys, name="slow", scopes=["chat", "search"], collections=["*"], requests_per_minute=30
    )
    tab = visit(start(serving__keys_file=str(keys)), ready=False)
    tab.expected = "status of (401|429)"
    tab.page.get_by_label("Key", exact=True).fill(key)
    tab.page.keyboard.press("Enter")
    tab.page.locator("#model:enabled").wait_for()
    spend = f"""async () => {{
      const headers = {{ Authorization: "Bearer {key}" }};
      for (let n = 0; n < 40; n += 1) {{
        if ((await fetch("v1/models", {{ headers }})).status === 429) return;
      }}
    }}"""
    tab.page.evaluate(spend)
    turn = tab.ask(wait=False)
    turn.get_by_text(re.compile(r"Try again in \d+ s")).wait_for()
    again = turn.get_by_role("button", name="Try again")
    assert again.is_disabled()
    tab.page.wait_for_function("() => !document.querySelector('.notice button').disabled")
    again.click()
    turn.locator(".answer-foot").wait_for()


def test_a_refusal_says_why(start: Start, visit: Any) -> None:
    tab = visit(start())
    tab.expected = "status of 400"
    turn = tab.ask("word " * 3000, wait=False)
    notice = turn.get_by_role("alert")
    notice.wait_for()
    assert "tokens" in notice.inner_text()


def test_a_server_that_went_away_is_noticed(start: Start, visit: Any) -> None:
    server = start()
    tab = visit(server)
    server.stop()
    tab.expected = "ERR_CONNECTION|ERR_EMPTY"
    turn = tab.ask(wait=False)
    turn.get_by_text("cannot be reached").wait_for()
    assert turn.get_by_role("button", name="Try again").is_enabled()


def test_all_of_it_by_keyboard(start: Start, visit: Any) -> None:
    tab = visit(start())
    page = tab.page
    assert focused(page) == "question"
    page.evaluate("document.body.tabIndex = -1; document.body.focus()")  # as after loading
    page.keyboard.press("Tab")
    assert focused(page) == "skip"
    box = page.locator(".skip").bounding_box()
    assert box["y"] >= 0, "the skip link is not visible where it has the focus"
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'question'")
    page.keyboard.type("Who keeps")
    page.keyboard.press("Shift+Enter")
    assert page.locator("#question").input_value() == "Who keeps\n"
    page.keyboard.press("Backspace")
    page.keyboard.type(" the cellar key?")
    page.keyboard.press("Enter")
    page.locator(".answer-foot").wait_for()
    assert focused(page) == "question"
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        ring = page.evaluate(
            "getComputedStyle(document.activeElement.closest('.source') || document.activeElement)"
            ".outlineStyle"
        )
        assert ring != "none", f"no visible focus on {focused(page)}"
        if focused(page) == "chip":
            break
    assert focused(page) == "chip"
    page.keyboard.press("Enter")
    page.locator("#panel mark").wait_for()
    assert focused(page) == "panel-title"
    page.keyboard.press("Escape")
    assert not page.locator("#panel").is_visible()
    assert focused(page) == "chip"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_chosen(
    start: Start, visit: Any, scheme: str
) -> None:
    other = {"light": "dark", "dark": "light"}[scheme]
    tab = visit(start(), color_scheme=scheme)
    page = tab.page

    def theme() -> str:
        return str(page.evaluate("document.documentElement.dataset.theme"))

    def background() -> int:
        text = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", text)[:3]))

    assert theme() == scheme
    assert (background() < 150) == (scheme == "dark")
    toggle = page.get_by_role("button", name="Dark mode")
    assert toggle.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    toggle.click()
    assert theme() == other
    page.reload()
    assert theme() == other
    assert (background() < 150) == (other == "dark")


def test_a_phone_shows_everything_without_scrolling_sideways(start: Start, visit: Any) -> None:
    corpus = {**CORPUS, "long.md": "The antidisestablishment " + "x" * 300 + " clause is long."}
    tab = visit(start(corpus=corpus), size=PHONE, is_mobile=True, has_touch=True)
    page = tab.page
    overflow = """() => [...document.querySelectorAll('body, body *')]
      .filter((e) => e.checkVisibility() && !e.closest('.hidden, .skip, svg, #announcer'))
      .filter((e) => getComputedStyle(e).clipPath === 'none')
      .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5)
      .map((e) => `${e.tagName}.${e.className}`)"""
    assert page.evaluate(overflow) == []
    tab.ask()
    tab.ask("What is the antidisestablishment clause?")
    assert page.evaluate(overflow) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator(".turn").last.locator(".source-open").first.tap()
    page.locator("#panel mark").wait_for()
    assert page.evaluate("document.querySelector('#panel').matches(':modal')")
    assert page.locator("#panel").bounding_box()["width"] == PHONE["width"]
    assert page.evaluate(overflow) == []
    small = """() => [...document.querySelectorAll('button, select, textarea')]
      .filter((e) => e.checkVisibility())
      .map((e) => [e.getBoundingClientRect(), e])
      .filter(([box, e]) => Math.min(box.width, box.height) < 24 && !e.matches('.source-open'))
      .map(([, e]) => e.outerHTML)"""
    assert page.evaluate(small) == []
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "source-open"


CONTRAST = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = (text.match(/[\\d.]+/g) || []).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => Object.fromEntries(
    ["r", "g", "b"].map((c) => [c, top[c] * top.a + below[c] * (1 - top.a)]));
  const luminance = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((c) => {
      const s = c / 255;
      return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const background = (node) => {
    if (!node) return { r: 255, g: 255, b: 255 };
    const style = getComputedStyle(node);
    // The highlighter is a gradient of one colour.
    const gradient = style.backgroundImage.match(/rgba?\\([^)]*\\)/);
    const own = parse(gradient ? gradient[0] : style.backgroundColor);
    return own.a >= 1 ? own : over(own, background(node.parentElement));
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const bad = [];
  let seen = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    if (node.closest(".hidden, script, noscript")) continue;
    seen += 1;
    const below = background(node);
    const [a, b] = [luminance(over(parse(getComputedStyle(node).color), below)), luminance(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${node.outerHTML}`);
  }
  return { bad, seen };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_contrast_names_and_structure(
    start: Start, visit: Any, scheme: str, size: dict[str, int]
) -> None:
    tab = visit(start(), size=size, color_scheme=scheme)
    page = tab.page
    tab.expected = "status of 400"
    check(page)
    tab.ask("Whose zeppelin?")
    tab.ask("word " * 3000, wait=False).get_by_role("alert").wait_for()
    turn = tab.ask()
    turn.get_by_role("button", name="Bad answer").click()
    check(page)
    turn.locator("button.chip").click()
    page.locator("#panel mark").wait_for()
    check(page)
    page.locator("#panel-close").click()
    page.get_by_role("button", name="Add documents").click()
    check(page)


def check(page: Any) -> None:
    """Contrast of all visible text, a name for every control, one h1, unique ids."""
    result = page.evaluate(CONTRAST)
    assert result["bad"] == []
    assert result["seen"] > 5
    session = page.context.new_cdp_session(page)
    tree = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    roles = {"button", "textbox", "combobox", "link", "dialog", "region", "article", "list"}
    nodes = [n for n in tree if not n["ignored"] and n.get("role", {}).get("value") in roles]
    assert len(nodes) >= 3
    nameless = [
        n for n in nodes
        if n["role"]["value"] != "list" and not n.get("name", {}).get("value", "").strip()
    ]  # fmt: skip
    assert nameless == []
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate(
        "[...document.querySelectorAll('[id]')].length"
        " === new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size"
    )
    dangling = """['aria-controls', 'aria-labelledby', 'aria-describedby'].flatMap((name) =>
      [...document.querySelectorAll(`[${name}]`)].map((e) => e.getAttribute(name)))
      .filter((id) => !document.getElementById(id))"""
    assert page.evaluate(dangling) == []


def test_answers_are_read_out_by_sentence(start: Start, visit: Any) -> None:
    tab = visit(start())
    region = tab.page.locator("#announcer")
    assert region.get_attribute("aria-live") == "polite"
    tab.ask()
    said = region.inner_text()
    assert ANSWER in said and "Answer complete, 1 source." in said
    assert "[1]" not in said


def test_less_motion_where_it_is_asked_for(start: Start, visit: Any) -> None:
    tab = visit(start(FirstSentence(delay=0.3)), reduced_motion="reduce")
    tab.ask(wait=False)
    tab.page.locator(".answer.running").wait_for()
    moving = "document.getAnimations().filter((a) => a.playState === 'running').length"
    assert tab.page.evaluate(moving) == 0


NO_STORAGE = """for (const name of ["localStorage", "sessionStorage"]) {
  const get = () => { throw new DOMException("storage is switched off", "SecurityError"); };
  Object.defineProperty(window, name, { get });
}"""


def test_a_browser_that_refuses_storage_works_all_the_same(start: Start, visit: Any) -> None:
    page = visit(start(), script=NO_STORAGE, ready=False).page
    page.locator("#model:enabled").wait_for()
    page.locator("#question").fill(QUESTION)
    page.keyboard.press("Enter")
    page.locator(".answer-foot").wait_for()
    page.get_by_role("button", name="Dark mode").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_page_runs_under_a_strict_policy(start: Start, visit: Any) -> None:
    server = start()
    with server.client() as client:
        policy = client.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src 'self'" in policy and "default-src 'none'" in policy
    tab = visit(server)
    inline = "document.querySelectorAll('script:not([src]), style, [style], [onclick]').length"
    assert tab.page.evaluate(inline) == 0 or tab.page.evaluate(
        "[...document.querySelectorAll('[style]')].every((e) => e.id === 'question')"
    )
