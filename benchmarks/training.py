"""Speed and memory of fine-tuning: this project, plain PEFT + Trainer, and TRL, in one run.

    python -m benchmarks.training --size cpu
    python -m benchmarks.training --size 0.5b --size 1.5b        # on a CUDA GPU

Models have real shapes and random weights; the data has the lengths of retrieval-augmented
prompts (many hundred tokens) and short answers. All contestants train the same LoRA on the same
examples with the same number of examples per step. Tokens are prompt and completion tokens;
padding does not count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rag_fti.progress import Silent

SHAPES: dict[str, dict[str, int]] = {
    # A toy that trains in seconds on two cores.
    "cpu": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 16_000},
    # Qwen2.5-0.5B and Qwen2.5-1.5B.
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
             "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
             "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_936},
}  # fmt: skip


@dataclass
class Result:
    """One contestant."""

    name: str
    tokens_per_second: float
    seconds_per_step: float
    peak_memory_gb: float
    mfu: float | None
    note: str = ""


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", action="append", choices=sorted(SHAPES), default=None)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16, help="examples per step")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    everything: dict[str, Any] = {}
    for size in arguments.size or ["cpu"]:
        with tempfile.TemporaryDirectory() as folder:
            results = compare(size, arguments, Path(folder))
        everything[size] = [asdict(result) for result in results]
        print(f"\n{size}: {describe_device()}, {arguments.batch} examples per step")
        print("| | tokens/s | against plain | s/step | peak GB | MFU | |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        plain = next(r for r in results if r.name == "peft + Trainer, padded")
        for r in results:
            mfu = "-" if r.mfu is None else f"{r.mfu:.1%}"
            print(
                f"| {r.name} | {r.tokens_per_second:,.0f} | "
                f"{r.tokens_per_second / plain.tokens_per_second:.2f}x | "
                f"{r.seconds_per_step:.2f} | {r.peak_memory_gb:.2f} | {mfu} | {r.note} |"
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


def compare(size: str, arguments: argparse.Namespace, folder: Path) -> list[Result]:
    """All contestants on one model size."""
    base = build_model(folder / "base", SHAPES[size])
    examples = build_examples(SHAPES[size]["vocab_size"], arguments.examples)
    contestants: list[tuple[str, Callable[..., Result]]] = [
        ("peft + Trainer, padded", run_plain),
        ("rag-fti, padded", run_ours_padded),
        ("rag-fti, packed", run_ours),
    ]
    if find_spec("trl") is not None:
        contestants.insert(1, ("TRL SFTTrainer, packed", run_trl))
    return [
        run(name, base, examples, arguments, folder / name.replace(" ", "-"))
        for name, run in contestants
    ]


def build_model(target: Path, shape: dict[str, int]) -> Path:
    """A random Qwen2-shaped model with a word tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    vocabulary = {f"w{n}": n for n in range(shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", eos_token="w1", unk_token="w0"
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    config = Qwen2Config(
        **shape, max_position_embeddings=8192, tie_word_embeddings=True, eos_token_id=1,
        pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).to(dtype).save_pretrained(str(target))
    fast.save_pretrained(str(target))
    return target


def build_examples(vocabulary: int, count: int) -> list[tuple[list[int], int]]:
    """Token ids and prompt length of each example; lengths spread as in retrieved contexts."""
    random = np.random.default_rng(7)
    examples = []
    for _ in range(count):
        prompt = int(np.clip(random.lognormal(6.2, 0.55), 120, 1800))
        answer = int(random.integers(4, 40))
        ids = random.integers(2, vocabulary, size=prompt + answer).tolist()
        examples.append((ids, prompt))
    return examples


def run_ours(
    name: str, base: Path, data: Sequence[tuple[list[int], int]], arguments: Any, work: Path,
    packing: bool = True,
) -> Result:  # fmt: skip
    """This project's training loop."""
    from rag_fti.models.causal import load_causal_lm
    from rag_fti.training.examples import Example
    from rag_fti.training.fitting import FitOptions, fit
    from rag_fti.training.preparing import prepare
    from rag_fti.training.probing import probe

    device, dtype = device_and_dtype()
    model = adapted(load_causal_lm(base, device=device, dtype=dtype, trainable=True))
    model.config.use_cache = False
    examples = [Example(tuple(ids), prompt) for ids, prompt in data]
    run = prepare(
        examples, (), capabilities=probe(model, examples, pad_token_id=0), packing=packing,
        row_tokens=4096 if device == "cuda" else 2048, pad_token_id=0,
        batch_size=arguments.batch, micro_batch_size=0, epochs=1, max_steps=arguments.steps,
        evaluations_per_epoch=0, seed=1,
    )  # fmt: skip
    reset_memory()
    result = fit(
        model, run.train, (), collate=run.collate, schedule=run.schedule,
        options=FitOptions(
            learning_rate=1e-4, warmup_share=0.0, weight_decay=0.0, early_stopping=0,
            checkpoint_minutes=1e6, seed=1, device=device, bf16=device == "cuda", fp16=False,
            compile=False, liger=False,
        ),
        work=work, resume=False, progress=Silent(),
    )  # fmt: skip
    note = f"padding {result.padding_share:.1%}, {run.schedule.rows_per_step} rows per step"
    return measured(
        name, model, data, result.tokens_per_second, result.seconds / result.steps_timed, note
    )


def run_ours_padded(*arguments: Any) -> Result:
    """This project without packing: batches by length."""
    return run_ours(*arguments, packing=False)


def run_plain(
    name: str, base: Path, data: Sequence[tuple[list[int], int]], arguments: Any, work: Path
) -> Result:
    """PEFT and transformers' Trainer with a padding collator, as in their examples."""
    from transformers import DataCollatorForSeq2Seq, Trainer

    from rag_fti.models.causal import load_causal_lm, load_tokenizer

    device, dtype = device_and_dtype()
    model = adapted(load_causal_lm(base, device=device, dtype=dtype, trainable=True))
    tokenizer = load_tokenizer(base)
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * p + ids[p:]}
        for ids, p in data
    ]
    reset_memory()
    clock = Clock(rows)
    Trainer(
        model=model,
        args=training_arguments(work, arguments),
        train_dataset=ListDataset(rows),
        data_collator=clock.around(DataCollatorForSeq2Seq(tokenizer, padding=True)),
        callbacks=[clock.callback()],
    ).train()
    return measured(name, model, data, clock.tokens_per_second, clock.seconds_per_step)


def run_trl(
    name: str, base: Path, data: Sequence[tuple[list[int], int]], arguments: Any, work: Path
) -> Result:
    """TRL's SFTTrainer with packing, completion-only loss and the same LoRA."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from rag_fti.models.causal import load_causal_lm, load_tokenizer

    device, dtype = device_and_dtype()
    model = load_causal_lm(base, device=device, dtype=dtype, trainable=True)
    rows = Dataset.from_list(
        [{"input_ids": ids, "completion_mask": [0] * p + [1] * (len(ids) - p)} for ids, p in data]
    )
    mean = sum(len(ids) for ids, _ in data) / len(data)
    length = 4096 if device == "cuda" else 2048
    per_step = max(1, round(arguments.batch * mean / length))
    plain = training_arguments(work, arguments)
    config = SFTConfig(
        output_dir=str(work), max_steps=arguments.steps, per_device_train_batch_size=per_step,
        learning_rate=1e-4, bf16=device == "cuda", use_cpu=device == "cpu", packing=True,
        max_length=length, completion_only_loss=True, report_to="none", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, seed=1, gradient_checkpointing=False,
        optim=plain.optim, dataloader_pin_memory=device == "cuda",
    )  # fmt: skip
    reset_memory()
    clock = Clock([])
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=rows, processing_class=load_tokenizer(base),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32,
                               target_modules="all-linear"),
        callbacks=[clock.callback()],
    )  # fmt: skip
    trainer.data_collator = clock.around(trainer.data_collator)
    trainer.train()
    return measured(
        name, trainer.model, data, clock.tokens_per_second, clock.seconds_per_step,
        f"attention {model.config._attn_implementation}",
    )  # fmt: skip


class ListDataset:
    """A list with the interface of a torch dataset."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


class Clock:
    """Counts real tokens and times steps; the first two steps warm up."""

    def __init__(self, _: Sequence[Any]) -> None:
        self.tokens: list[int] = []
        self.seconds: list[float] = []

    def around(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A collator that counts."""

        def counted(rows: Sequence[Any]) -> Any:
            self.tokens.append(sum(len(row["input_ids"]) for row in rows))
            return collate(rows)

        return counted

    def callback(self) -> Any:
        """A Trainer callback that times steps."""
        import torch
        from transformers import TrainerCallback

        clock = self

        class Timer(TrainerCallback):
            began = 0.0

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.began = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                clock.seconds.append(time.perf_counter() - self.began)

        return Timer()

    @property
    def seconds_per_step(self) -> float:
        """Mean of the timed steps."""
        timed = self.seconds[2:]
        return sum(timed) / len(timed)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens by time."""
        per_step = sum(self.tokens) / len(self.tokens)
        return per_step / self.seconds_per_step


def adapted(model: Any) -> Any:
    """The LoRA that all contestants train."""
    from rag_fti.training.adapter import add_adapter

    return add_adapter(
        model, rank=16, alpha=32, dropout=0.0, targets="all-linear", last_layers=0, dora=False,
        rslora=False, quantized=False, gradient_checkpointing=False,
    )  # fmt: skip


def training_arguments(work: Path, arguments: Any) -> Any:
    """What the plain contestant runs with."""
    import torch
    from transformers import TrainingArguments

    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(work), max_steps=arguments.steps, learning_rate=1e-4, bf16=cuda,
        per_device_train_batch_size=arguments.batch, use_cpu=not cuda, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=1,
        optim="adamw_torch_fused" if cuda else "adamw_torch", dataloader_pin_memory=cuda,
        remove_unused_columns=False,
    )  # fmt: skip


def device_and_dtype() -> tuple[str, Any]:
    """Where and in what the benchmark runs."""
    import torch

    cuda = torch.cuda.is_available()
    return ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)


def describe_device() -> str:
    """The device, for the table."""
    from rag_fti.training.throughput import device_name

    return device_name(device_and_dtype()[0])


def reset_memory() -> None:
    """Forget the last contestant's peak."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measured(
    name: str, model: Any, data: Sequence[tuple[list[int], int]], tokens: float, seconds: float,
    note: str = "",
) -> Result:  # fmt: skip
    """A result with MFU and memory."""
    from rag_fti.training.throughput import flops_per_token, peak_flops, peak_memory_bytes

    device, _ = device_and_dtype()
    peak = peak_flops(device)
    mean = sum(len(ids) for ids, _ in data) / len(data)
    mfu = flops_per_token(model, length=mean) * tokens / peak if peak else None
    if device == "cpu":
        note = f"{note}; peak of the whole process so far".strip("; ")
    return Result(name, tokens, seconds, peak_memory_bytes(device) / 1e9, mfu, note)


if __name__ == "__main__":
    main()
