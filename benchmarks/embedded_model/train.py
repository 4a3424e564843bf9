"""Train the reader. Safe to kill: started again with the same ``--out`` it goes on.

    python -m benchmarks.embedded_model.train --minutes 75

The learning rate falls with the time budget, so a busy machine trains less but ends right. On a
GPU the same script runs with ``--device cuda``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.embedded_model.base import build_config, build_model, build_tokenizer
from benchmarks.embedded_model.data import KINDS
from benchmarks.embedded_model.evaluate import dev, evaluate
from rag_fti.models.reader import ReaderForCausalLM, register

MIX = {
    # kind: (share at the start, share at the end)
    "qamr": (0.33, 0.33),
    "multi": (0.20, 0.22),
    "absent": (0.11, 0.10),
    "near_miss": (0.07, 0.08),
    "policy": (0.06, 0.06),
    "covid": (0.02, 0.02),
    "cloze": (0.10, 0.08),
    "recurring": (0.05, 0.04),
    "question": (0.07, 0.08),
    "written": (0.0, 0.0),
    "near_written": (0.0, 0.0),
}
CHUNK = 512
MASK_ID, PASSAGE_ID = 103, 30522


@dataclasses.dataclass
class Progress:
    """Where a run stands."""

    seconds: float = 0.0
    """Training time so far, evaluation and saving left out."""
    chunk: int = 0
    step: int = 0
    tokens: int = 0
    drawn: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0))


class Pool:
    """The tokenized examples, drawn kind by kind without repetition until all were seen."""

    def __init__(
        self, path: Path, seed: int, *, favoured_length: int = 0, mask_question: float = 0.0
    ) -> None:
        data = np.load(path)
        self.ids, self.copies = data["ids"], data["copies"]
        self.lengths, self.prompts, self.kinds = data["lengths"], data["prompts"], data["kinds"]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.copy_starts = np.concatenate([[0], np.cumsum(self.lengths - self.prompts)])
        kept = np.ones(len(self.lengths), dtype=bool)
        if favoured_length:
            # Longer examples are kept less often, so that a token budget buys more questions.
            chance = np.random.default_rng(seed).random(len(kept))
            kept = chance < favoured_length / self.lengths
        self.members = {
            name: np.flatnonzero(kept & (self.kinds == i)) for i, name in enumerate(KINDS)
        }
        self.seed = seed
        self.mask_question = mask_question
        self.orders: dict[tuple[str, int], np.ndarray] = {}

    def draw(self, kind: str, already: int, count: int) -> list[int]:
        """The next ``count`` examples of a kind after ``already`` were drawn."""
        members = self.members[kind]
        found = []
        for position in range(already, already + count):
            epoch, place = divmod(position, len(members))
            order = self._order(kind, epoch)
            found.append(int(members[order[place]]))
        return found

    def _order(self, kind: str, epoch: int) -> np.ndarray:
        """A kind's order in an epoch, kept so that drawing many costs one shuffle."""
        if (kind, epoch) not in self.orders:
            rng = np.random.default_rng([self.seed, epoch])
            self.orders[kind, epoch] = rng.permutation(len(self.members[kind]))
        return self.orders[kind, epoch]

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """Right-padded tensors of these examples."""
        longest = int(self.lengths[rows].max())
        ids = np.zeros((len(rows), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        labels, copies = np.full_like(ids, -100), np.full_like(ids, -1)
        for at, row in enumerate(rows):
            length, prompt = int(self.lengths[row]), int(self.prompts[row])
            ids[at, :length] = self.ids[self.starts[row] : self.starts[row] + length]
            mask[at, :length] = 1
            labels[at, prompt:length] = ids[at, prompt:length]
            if self.mask_question and KINDS[self.kinds[row]] != "question":
                # With words missing it must find the answer by what the question means.
                end = int(np.argmax(ids[at] == PASSAGE_ID))
                hidden = (
                    np.random.default_rng([self.seed, 78, row]).random(end) < self.mask_question
                )
                hidden[0] = False
                ids[at, :end][hidden] = MASK_ID
            first = self.copy_starts[row]
            copies[at, prompt:length] = self.copies[first : first + length - prompt]
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
            "copy_positions": torch.from_numpy(copies),
        }


def chunk_batches(
    pool: Pool, progress: Progress, mix: dict[str, tuple[float, float]], share: float, budget: int
) -> list[list[int]]:
    """Batches of one chunk of examples, each of at most ``budget`` padded tokens."""
    rows: list[int] = []
    for kind, (first, last) in mix.items():
        count = round(CHUNK * (first + (last - first) * share))
        rows += pool.draw(kind, progress.drawn[kind], count)
        progress.drawn[kind] += count
    rows.sort(key=lambda row: int(pool.lengths[row]))
    batches: list[list[int]] = [[]]
    for row in rows:
        if (len(batches[-1]) + 1) * int(pool.lengths[row]) > budget and batches[-1]:
            batches.append([])
        batches[-1].append(row)
    order = np.random.default_rng([pool.seed, 77, progress.chunk]).permutation(len(batches))
    return [batches[i] for i in order]


def parameter_groups(model: ReaderForCausalLM, rate: float, head: float) -> list[dict[str, Any]]:
    """Encoder and head apart; no weight decay on norms and biases."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        key = name.startswith("head."), parameter.ndim > 1 and "embeddings" not in name
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": head if in_head else rate,
            "weight_decay": 0.01 if decays else 0.0,
        }
        for (in_head, decays), parameters in groups.items()
    ]


def schedule(share: float, step: int) -> float:
    """Learning rate relative to its peak: warm up, then fall linearly to nothing."""
    return min(1.0, (step + 1) / 100) * max(0.0, 1.0 - share)


def save(
    out: Path, model: ReaderForCausalLM, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write a checkpoint beside the last and swap them."""
    model.save_pretrained(out / "model")
    state = {"optimizer": optimizer.state_dict(), "progress": dataclasses.asdict(progress)}
    temporary = out / "state.pt.tmp"
    torch.save({**state, "model": model.state_dict()}, temporary)
    os.replace(temporary, out / "state.pt")


def restore(
    out: Path, model: ReaderForCausalLM, optimizer: torch.optim.Optimizer, device: torch.device
) -> Progress:
    """Load the last checkpoint of the run, if there is one."""
    if not (out / "state.pt").exists():
        return Progress()
    state = torch.load(out / "state.pt", map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress = Progress(**state["progress"])
    progress.drawn = dict.fromkeys(KINDS, 0) | progress.drawn
    return progress


def step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> float:
    """One update; returns the loss."""
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        loss = model(**batch).loss
    if not torch.isfinite(loss):
        raise RuntimeError(f"the loss is {loss.item()}")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss)


def held_out_scores(model: Any, tokenizer: Any, sets: Any, limit: int) -> dict[str, Any]:
    """The figures worth logging of the development questions."""
    model.eval()
    # What was compiled for training is of no use to generation, and would be compiled anew.
    with torch.compiler.set_stance("force_eager"):
        scores = evaluate(model, tokenizer, sets, limit=limit)
    model.train()
    return {
        kind: {k: round(v, 3) for k, v in s.items() if k in ("f1", "em", "abstained")}
        for kind, s in scores.items()
    }


def begin(options: argparse.Namespace, tokenizer: Any) -> Any:
    """The model to train, in float32: a reader to go on from, or MiniLM."""
    if options.start:
        # The passages of the pool stand in any order, those of what ships in that of retrieval.
        model: Any = AutoModelForCausalLM.from_pretrained(
            options.start, dtype=torch.float32, rank_exponent=0.0
        )
    else:
        model = build_model(build_config(tokenizer), seed=options.seed)
    if options.compile:
        for block in model.layers:
            block.compile(dynamic=True)
    return model


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train, yielding one record per log line."""
    device = torch.device(options.device)
    tokenizer = build_tokenizer()
    model = begin(options, tokenizer).to(device).train()
    pool = Pool(
        options.data / "pool.npz",
        options.seed,
        favoured_length=options.favoured_length,
        mask_question=options.mask_question,
    )
    mix = {kind: (share, share) for kind, share in options.mix} if options.mix else MIX
    sets = dev(options.data / "dev.jsonl")
    groups = parameter_groups(model, options.rate, options.head_rate)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
    out: Path = options.out
    peaks = [group["peak"] for group in groups]
    progress = restore(out, model, optimizer, device)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["peak"] = peak  # the command line's, not the checkpoint's
    budget = options.minutes * 60
    tokenizer.save_pretrained(out / "model")
    losses: list[float] = []
    saved = evaluated = logged = progress.seconds
    while progress.seconds < budget:
        batches = chunk_batches(pool, progress, mix, progress.seconds / budget, options.tokens)
        progress.chunk += 1
        for rows in batches:
            begun = time.perf_counter()
            for group in optimizer.param_groups:
                share = progress.seconds / budget
                group["lr"] = group["peak"] * schedule(share, progress.step)
            batch = {name: value.to(device) for name, value in pool.batch(rows).items()}
            losses.append(step(model, optimizer, batch))
            progress.step += 1
            progress.tokens += int(batch["attention_mask"].sum())
            progress.seconds += time.perf_counter() - begun
            if progress.seconds - logged >= 60:
                logged = progress.seconds
                yield {
                    "minutes": round(progress.seconds / 60, 1),
                    "step": progress.step,
                    "loss": round(float(np.mean(losses)), 4),
                    "tokens": progress.tokens,
                    "tokens_per_second": round(progress.tokens / progress.seconds),
                }
                losses.clear()
        if progress.seconds - saved >= 240:
            saved = progress.seconds
            save(out, model, optimizer, progress)
        if progress.seconds - evaluated >= options.eval_minutes * 60:
            evaluated = progress.seconds
            scores = held_out_scores(model, tokenizer, sets, options.eval_limit)
            yield {"minutes": round(progress.seconds / 60, 1), "dev": scores}
    save(out, model, optimizer, progress)
    yield {"finished": True, "dev": held_out_scores(model, tokenizer, sets, options.eval_limit)}


def kind_share(text: str) -> tuple[str, float]:
    """``kind=share`` of the command line."""
    kind, _, share = text.partition("=")
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(f"no kind {kind!r}; there are {', '.join(KINDS)}")
    return kind, float(share)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/build/reader"))
    parser.add_argument("--out", type=Path, default=Path("data/build/reader/run"))
    parser.add_argument("--start", type=Path, help="a reader to go on from, instead of MiniLM")
    parser.add_argument("--minutes", type=float, default=75.0)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--head-rate", type=float, default=4e-4)
    parser.add_argument("--tokens", type=int, default=2048, help="padded tokens in a batch")
    parser.add_argument(
        "--favoured-length", type=int, default=70, help="keep longer examples less often; 0: all"
    )
    parser.add_argument(
        "--mix", nargs="+", type=kind_share, metavar="KIND=SHARE", help="instead of the usual mix"
    )
    parser.add_argument(
        "--mask-question", type=float, default=0.0, help="chance that a question's token is hidden"
    )
    parser.add_argument("--eval-minutes", type=float, default=14.0)
    parser.add_argument("--eval-limit", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers: a fifth faster, a minute to start",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    register()
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "log.jsonl").open("a") as log:
        for record in run(options):
            print(json.dumps(record), flush=True)
            log.write(json.dumps(record) + "\n")
            log.flush()


if __name__ == "__main__":
    main()
