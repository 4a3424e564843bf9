"""Measure a reader as it is served: greedy ``generate()``, answers aligned to their passage.

XQuAD: ``python -m benchmarks.embedded_model.evaluate data/models/rag-fti-reader``;
held-out questions: the same with ``--dev``. Passages stand in the order of their similarity to
the question, as retrieval puts them; ``--order given`` leaves them at random ranks, and the
reader expects none.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer, SuppressTokensAtBeginLogitsProcessor

from benchmarks.embedded_model.sources import data_root
from rag_fti import prompts
from rag_fti.alignment import align
from rag_fti.config import load_settings
from rag_fti.models.embedder import build_embedder
from rag_fti.models.reader import register
from rag_fti.protocols import Embedder


@dataclass(frozen=True)
class Question:
    """One question, what is shown with it and what is right."""

    kind: str
    question: str
    passages: tuple[prompts.Passage, ...]
    answers: tuple[str, ...]
    """Empty where abstaining is right."""
    gold: int = -1


@dataclass(frozen=True)
class Reply:
    """What the model said."""

    text: str
    abstain_probability: float


def normalize(text: str) -> str:
    """SQuAD's normalisation: case, punctuation, articles and whitespace dropped."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(said: str, answer: str) -> float:
    """Token overlap of two texts, 0 to 1."""
    left, right = normalize(said).split(), normalize(answer).split()
    same = sum((collections.Counter(left) & collections.Counter(right)).values())
    if not left or not right or not same:
        return float(left == right)
    return 2 * same / (len(left) + len(right))


def exact(said: str, answer: str) -> bool:
    """Whether two texts are the same but for SQuAD's normalisation."""
    return normalize(said) == normalize(answer)


@torch.inference_mode()
def reply_all(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    batch_size: int = 16,
    always_answer: bool = False,
) -> list[Reply]:
    """Greedy replies, batched by length; with ``always_answer`` none is an abstention."""
    encoded = [
        prompts.prompt_token_ids(tokenizer, prompts.answer_messages(q.question, q.passages))
        for q in questions
    ]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    found: dict[int, Reply] = {}
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        batch = tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="pt")
        length = batch["input_ids"].shape[1]
        never = SuppressTokensAtBeginLogitsProcessor([model.config.abstain_id], length)
        result = model.generate(
            **batch.to(model.device),
            logits_processor=[never] if always_answer else [],
            max_new_tokens=48,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        abstain = result.logits[0].float().softmax(dim=-1)[:, model.config.abstain_id]
        texts = tokenizer.batch_decode(result.sequences[:, length:], skip_special_tokens=True)
        for row, text, probability in zip(rows, texts, abstain.tolist(), strict=True):
            found[row] = Reply(text.strip(), probability)
    return [found[i] for i in range(len(encoded))]


def score(
    questions: Sequence[Question], replies: Sequence[Reply], threshold: float
) -> dict[str, float]:
    """Means over the questions; abstains at or above the threshold or where the text says so."""
    total: collections.Counter[str] = collections.Counter()
    for question, reply in zip(questions, replies, strict=True):
        abstained = prompts.is_abstention(reply.text) or reply.abstain_probability >= threshold
        total["n"] += 1
        total["abstained"] += abstained
        if abstained or not question.answers:
            continue
        total["spoke"] += 1
        words = prompts.without_markers(reply.text)
        cited = [n for n in prompts.cited_numbers(reply.text) if n <= len(question.passages)]
        span = align(words, question.passages[cited[0] - 1].text) if cited else None
        total["verbatim"] += span is not None
        total["cited_gold"] += bool(cited) and cited[0] - 1 == question.gold
        said = span.text if span else words
        total["f1"] += max(f1(said, answer) for answer in question.answers)
        total["em"] += max(exact(said, answer) for answer in question.answers)
    n, spoke = total["n"], max(1, total["spoke"])
    result = {"n": n, "abstained": total["abstained"] / n}
    if any(q.answers for q in questions):
        result |= {
            "f1": total["f1"] / n,
            "em": total["em"] / n,
            "verbatim": total["verbatim"] / spoke,
            "cited_gold": total["cited_gold"] / spoke,
        }
    return result


def xquad(root: Path) -> dict[str, list[Question]]:
    """The tests: gold paragraph, gold among four others, and none that answers."""
    articles = json.loads((root / "xquad" / "xquad_en_open.json").read_text())["data"]
    texts = [[p["context"] for p in article["paragraphs"]] for article in articles]
    rng = random.Random(13)
    found: dict[str, list[Question]] = collections.defaultdict(list)
    for number, article in enumerate(articles):
        for at, paragraph in enumerate(article["paragraphs"]):
            for raw in paragraph["qas"]:
                answers = tuple(answer["text"] for answer in raw["answers"])
                near = [text for i, text in enumerate(texts[number]) if i != at]
                others = [i for i in range(len(articles)) if i != number]
                far = [rng.choice(texts[i]) for i in rng.sample(others, 4)]

                sets: list[tuple[str, list[str], int]] = [("gold", [paragraph["context"]], 0)]
                for name, rest in (("near", near), ("far", far)):
                    rank = rng.randint(0, 4)
                    shown = [*rest[:rank], paragraph["context"], *rest[rank:]]
                    sets.append((f"gold_among_4_{name}", shown, rank))
                    sets.append((f"absent_4_{name}", rest, -1))
                    sets.append((f"absent_1_{name}", rest[:1], -1))
                for kind, shown, gold in sets:
                    passages = tuple(prompts.Passage(text) for text in shown)
                    right = answers if gold >= 0 else ()
                    found[kind].append(Question(kind, raw["question"], passages, right, gold))
    return dict(found)


def dev(path: Path) -> dict[str, list[Question]]:
    """The development questions that ``data.py`` wrote."""
    found: dict[str, list[Question]] = collections.defaultdict(list)
    for line in path.read_text().splitlines():
        raw = json.loads(line)
        passages = tuple(prompts.Passage(*parts) for parts in raw["passages"])
        found[raw["kind"]].append(
            Question(raw["kind"], raw["question"], passages, tuple(raw["answers"]), raw["gold"])
        )
    return dict(found)


def in_retrieved_order(questions: Sequence[Question], embedder: Embedder) -> list[Question]:
    """The same questions, their passages sorted by similarity to them."""

    def ordered(question: Question) -> Question:
        if len(question.passages) < 2:
            return question
        texts = [f"{p.title}\n{p.heading}\n{p.text}".strip() for p in question.passages]
        scores = embedder.encode_documents(texts) @ embedder.encode_queries([question.question])[0]
        order = sorted(range(len(texts)), key=lambda n: -scores[n])
        gold = order.index(question.gold) if question.gold >= 0 else -1
        return replace(question, passages=tuple(question.passages[n] for n in order), gold=gold)

    return [ordered(question) for question in questions]


def at_most(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """A sample of the questions, always the same one."""
    if not limit or len(questions) <= limit:
        return list(questions)
    return random.Random(5).sample(questions, limit)


def evaluate(
    model: Any,
    tokenizer: Any,
    sets: dict[str, list[Question]],
    *,
    threshold: float = 2.0,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """Scores of every set of questions."""
    scores = {}
    for name, questions in sets.items():
        asked = at_most(questions, limit)
        scores[name] = score(asked, reply_all(model, tokenizer, asked), threshold)
    return scores


def sweep(model: Any, tokenizer: Any, sets: dict[str, list[Question]]) -> list[dict[str, float]]:
    """Abstention at each threshold: right where there is no answer, wrong where there is one."""
    right: list[float] = []
    wrong: list[float] = []
    for questions in sets.values():
        for question, reply in zip(questions, reply_all(model, tokenizer, questions), strict=True):
            (wrong if question.answers else right).append(reply.abstain_probability)
    rows = []
    for threshold in (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8):
        rows.append(
            {
                "threshold": threshold,
                "abstained": sum(p >= threshold for p in right) / max(1, len(right)),
                "false": sum(p >= threshold for p in wrong) / max(1, len(wrong)),
            }
        )
    return rows


NEAR_MISSES = {
    "written": "near_written",
    "written_multi": "near_written_multi",
    "multi": "absent",
    "gold": "absent_1_near",
    "gold_among_4_near": "absent_4_near",
}
"""Kinds with an answer, and those like them without."""


def apart(model: Any, tokenizer: Any, sets: dict[str, list[Question]]) -> list[dict[str, Any]]:
    """Reading and abstaining each for itself.

    F1 of a model that may not abstain, and how well its probability of abstaining tells the near
    misses: the area under the ROC curve.
    """
    replies = {
        name: reply_all(model, tokenizer, questions, always_answer=True)
        for name, questions in sets.items()
    }
    rows = []
    for name, questions in sets.items():
        if not any(question.answers for question in questions):
            continue
        scores = score(questions, replies[name], threshold=2.0)
        row: dict[str, Any] = {"kind": name, "n": len(questions)}
        row |= {key: round(scores[key], 3) for key in ("f1", "em", "cited_gold")}
        if near := replies.get(NEAR_MISSES.get(name, "")):
            absent = [False] * len(questions) + [True] * len(near)
            chances = [reply.abstain_probability for reply in (*replies[name], *near)]
            row["auc"] = round(float(roc_auc_score(absent, chances)), 3)
        rows.append(row)
    return rows


def speed(model: Any, tokenizer: Any, questions: Sequence[Question]) -> dict[str, float]:
    """Seconds to the first token and tokens per second after it, one request at a time."""
    first, later, count = 0.0, 0.0, 0
    for question in questions:
        messages = prompts.answer_messages(question.question, question.passages)
        ids = torch.tensor([prompts.prompt_token_ids(tokenizer, messages)])
        spent = []
        for tokens in (1, 33):
            begun = time.perf_counter()
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
            )
            spent.append(time.perf_counter() - begun)
        first, later, count = first + spent[0], later + spent[1] - spent[0], count + 1
    return {"seconds_to_first_token": first / count, "tokens_per_second": 32 * count / later}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dev", action="store_true", help="the held-out questions, not XQuAD")
    parser.add_argument("--dev-file", type=Path, default=Path("data/build/reader/dev.jsonl"))
    parser.add_argument("--limit", type=int, help="at most so many questions of a kind")
    parser.add_argument("--kinds", nargs="*", help="only these kinds")
    parser.add_argument("--threshold", type=float, default=2.0, help="abstain from here")
    parser.add_argument(
        "--order", choices=("retrieved", "given"), default="retrieved", help="of the passages"
    )
    parser.add_argument("--speed", action="store_true", help="time single requests instead")
    parser.add_argument("--sweep", action="store_true", help="abstention by threshold instead")
    parser.add_argument(
        "--apart", action="store_true", help="reading and abstaining each for itself instead"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    register()
    begun = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    retrieved = options.order == "retrieved"
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.float32, **({} if retrieved else {"rank_exponent": 0.0})
    ).eval()
    print(f"loaded in {time.perf_counter() - begun:.2f} s")
    sets = {
        name: at_most(questions, options.limit)
        for name, questions in (
            dev(options.dev_file) if options.dev else xquad(data_root())
        ).items()
        if not options.kinds or name in options.kinds
    }
    if retrieved:
        embedder = build_embedder(load_settings().embedder)
        sets = {name: in_retrieved_order(questions, embedder) for name, questions in sets.items()}
    if options.sweep:
        for row in sweep(model, tokenizer, sets):
            print(" ".join(f"{k}={v:.3f}" for k, v in row.items()))
        return
    if options.apart:
        for row in apart(model, tokenizer, sets):
            print(json.dumps(row), flush=True)
        return
    for name, questions in sets.items():
        if options.speed:
            print(name, json.dumps(speed(model, tokenizer, questions[:20])))
            continue
        result = score(questions, reply_all(model, tokenizer, questions), options.threshold)
        print(f"{name:18}", " ".join(f"{k}={v:.3f}" for k, v in result.items()), flush=True)


if __name__ == "__main__":
    main()
