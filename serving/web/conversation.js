// Questions and answers: asking, streaming, stopping, and what is sent back as history.

import { ApiError, events, request } from "./api.js";
import { footer, renderText, sources, withoutMarkers } from "./answer.js";
import { announce, byId, count, element, icon } from "./dom.js";

const EARLIER_TURNS = 200; // sent along; the server takes 500 messages and reads fewer
const NEAR = 80; // pixels from the end at which a reader counts as following the answer

/**
 * @param {{model: () => string|undefined, openSource: Function, onState: Function,
 *   onAnswered: Function}} seams `onState(running)` when an answer starts or ends.
 */
export function createConversation({ model, openSource, onState, onAnswered }) {
  const list = byId("turns");
  const scroll = byId("scroll");
  let turns = [];
  let running = null;

  function ask(question) {
    if (running) return;
    const turn = { question, text: "", status: "running", view: viewOf(question, turns.length) };
    turns.push(turn);
    list.append(turn.view.root);
    byId("empty").hidden = true;
    turn.view.root.scrollIntoView({ block: "start" });
    run(turn);
  }

  async function run(turn) {
    const abort = new AbortController();
    running = { turn, abort };
    onState(true);
    turn.status = "running";
    turn.text = "";
    turn.started = performance.now();
    turn.view.start();
    announce("Looking for an answer.");
    const speech = speaker();
    try {
      await stream(turn, abort.signal, speech);
      turn.status = "done";
    } catch (error) {
      turn.status = error.name === "AbortError" ? "stopped" : "failed";
      turn.error = error;
      if (turn.status === "failed" && !(error instanceof ApiError)) throw error;
    } finally {
      turn.seconds = (performance.now() - turn.started) / 1000;
      if (running?.turn === turn) {
        running = null;
        onState(false);
      }
      finish(turn, speech);
    }
  }

  async function stream(turn, signal, speech) {
    const messages = [...history(turn), { role: "user", content: turn.question }];
    const body = { model: model(), messages, stream: true };
    const response = await request("v1/chat/completions", { json: body, signal });
    for await (const event of events(response.body)) {
      turn.id = event.id || turn.id;
      turn.model = event.model || turn.model;
      for (const name of ["citations", "abstained", "snapshot"]) {
        if (event[name] !== undefined) turn[name] = event[name];
      }
      const piece = event.choices?.[0]?.delta?.content;
      if (!piece) continue;
      turn.text += piece;
      speech.say(piece);
      following(() => renderText(turn.view.text, turn.text, null));
    }
  }

  /** The latest turns that were answered, oldest first. */
  function history(turn) {
    const before = turns.slice(0, turns.indexOf(turn));
    return before
      .filter((earlier) => earlier.status === "done" || (earlier.status === "stopped" && earlier.text))
      .slice(-EARLIER_TURNS)
      .flatMap((earlier) => [
        { role: "user", content: earlier.question },
        { role: "assistant", content: withoutMarkers(earlier.text) || earlier.text },
      ]);
  }

  function finish(turn, speech) {
    const { view } = turn;
    view.end(turn);
    const citations = turn.citations || [];
    const open = (citation, from) => openSource(citation, turn.snapshot || "", from);
    following(() => {
      renderText(view.text, turn.text, turn.status === "done" ? citations : null, open);
      if (turn.status === "done") {
        view.tail.replaceChildren();
        if (citations.length && !turn.abstained) view.tail.append(sources(citations, open));
        view.tail.append(footer({ id: turn.id, text: turn.text, about: aboutLine(turn) }));
      } else {
        view.tail.replaceChildren(ending(turn));
      }
    });
    speech.end();
    if (turn.status === "done") {
      announce(turn.abstained ? "No answer was found." : `Answer complete, ${count(citations.length, "source")}.`);
      onAnswered(turn.model);
    } else if (turn.status === "stopped") announce("Stopped.");
  }

  /** A line or a notice for an answer that was stopped or failed, with a way to try again. */
  function ending(turn) {
    const again = element(
      "button",
      { type: "button", class: "button plain", onclick: () => !running && run(turn) },
      icon("retry"),
      element("span", { text: "Try again" }),
    );
    if (turn.status === "stopped") {
      return element("div", { class: "stopped" }, element("p", { text: "Stopped." }), again);
    }
    const words = element("p", { text: reason(turn.error) });
    if (turn.error.retryAfter) countdown(turn.error.retryAfter, words, again);
    return element("div", { class: "notice", role: "alert" }, words, again);
  }

  function following(change) {
    const follows = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR;
    change();
    if (follows) scroll.scrollTop = scroll.scrollHeight;
  }

  return {
    ask,
    stop: () => running?.abort.abort(),
    isRunning: () => running !== null,
    clear() {
      running?.abort.abort();
      running = null;
      onState(false);
      turns = [];
      list.replaceChildren();
      byId("empty").hidden = false;
      scroll.scrollTop = 0;
    },
  };
}

function viewOf(question, number) {
  const id = `turn-${number}-${Date.now()}`;
  const text = element("div", { class: "answer-text" });
  const waiting = element(
    "p",
    { class: "waiting" },
    element("span", { class: "pulse", "aria-hidden": "true" }),
    "Searching the documents…",
  );
  const tail = element("div");
  const answer = element("div", { class: "answer" }, waiting, text, tail);
  const heading = element(
    "h2",
    { class: "question", id, dir: "auto" },
    element("span", { class: "hidden", text: "Question: " }),
    question,
  );
  const root = element("article", { class: "turn", "aria-labelledby": id }, heading, answer);
  return {
    root,
    text,
    tail,
    start() {
      text.replaceChildren();
      tail.replaceChildren();
      waiting.hidden = false;
      root.setAttribute("aria-busy", "true");
      answer.classList.add("running");
      answer.classList.remove("abstained");
    },
    end(turn) {
      waiting.hidden = true;
      root.removeAttribute("aria-busy");
      answer.classList.remove("running");
      answer.classList.toggle("abstained", turn.status === "done" && Boolean(turn.abstained));
    },
  };
}

const aboutLine = ({ model, snapshot, seconds }) =>
  [model && `Answered by ${model}`, snapshot && `documents as of ${snapshot}`, `${seconds.toFixed(1)}\u00a0s`]
    .filter(Boolean)
    .join(" · ");

function reason(error) {
  if (error.status === 429) return "The server is busy right now.";
  if (error.status === 401) return "An API key is needed to ask here.";
  return error.message;
}

/** Count down to the moment at which trying again makes sense. */
function countdown(seconds, words, button) {
  const said = words.textContent;
  const until = Date.now() + seconds * 1000;
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    button.disabled = left > 0;
    words.textContent = left > 0 ? `${said} Try again in ${left} s.` : `${said} You can try again now.`;
    if (left <= 0) clearInterval(timer);
  };
  const timer = setInterval(tick, 250);
  tick();
}

/** Hands an answer to screen readers sentence by sentence instead of word by word. */
function speaker() {
  let rest = "";
  return {
    say(piece) {
      rest += piece;
      const cut = rest.search(/[.!?]\s(?!.*[.!?]\s)/s);
      if (cut < 0) return;
      announce(withoutMarkers(rest.slice(0, cut + 1)));
      rest = rest.slice(cut + 1);
    },
    end() {
      const words = withoutMarkers(rest);
      if (words) announce(words);
    },
  };
}
