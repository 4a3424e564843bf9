"""Low-rank adapters on a frozen base model."""

from __future__ import annotations

import re
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from rag_fti.errors import ConfigError

ALL_LINEAR = "all-linear"
LINEAR = (torch.nn.Linear, Conv1D)
"""GPT-2 and its kin have the second kind."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)\.")


def add_adapter(
    model: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str | tuple[str, ...],
    last_layers: int,
    dora: bool,
    rslora: bool,
    quantized: bool,
    gradient_checkpointing: bool,
) -> Any:
    """Wrap a base model so that only low-rank updates are trained.

    Args:
        model: The base model.
        rank: Rank of the update.
        alpha: Scale; the update is multiplied by ``alpha / rank`` (``alpha / sqrt(rank)`` with
            ``rslora``).
        dropout: Dropout on the adapter's input.
        targets: ``all-linear`` or names of modules.
        last_layers: Adapt only modules of the last layers, and those outside the layers; 0 for
            all.
        dora: Weight-decomposed variant.
        rslora: Rank-stabilised scale.
        quantized: The base model is in 4 bit.
        gradient_checkpointing: Recompute activations in the backward pass.

    Raises:
        ConfigError: If no module has one of these names, or it is an embedding that the model uses
            for its head too.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    names = _targets(model, targets, last_layers)
    _refuse_tied(model, names)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        use_dora=dora,
        use_rslora=rslora,
    )
    if quantized:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=gradient_checkpointing
        )
    try:
        with warnings.catch_warnings():
            # peft sees for itself that GPT-2's weights lie the other way round.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(
            f"training.lora does not fit the base model: {error}",
            next_step="Set training.lora.targets to all-linear.",
        ) from error
    if gradient_checkpointing:
        # transformers 5.24 renamed the method; older releases know it by the other name only.
        enable = getattr(adapted, "activation_checkpointing_enable", None)
        if enable is not None:
            enable(activation_checkpointing_kwargs={"use_reentrant": False})
        else:
            adapted.gradient_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    return adapted


def _targets(model: Any, targets: str | tuple[str, ...], last_layers: int) -> str | list[str]:
    if isinstance(targets, str) and targets != ALL_LINEAR:
        targets = (targets,)  # a name of modules; peft reads a bare text as a pattern of full paths
    if not last_layers:
        return targets if isinstance(targets, str) else list(targets)
    first = model.config.num_hidden_layers - last_layers
    head = model.get_output_embeddings()
    names, linear = [], set()
    for name, module in model.named_modules():
        if not isinstance(module, LINEAR) or module is head:
            continue
        linear.add(name.rpartition(".")[2])
        wanted = targets == ALL_LINEAR or name.rpartition(".")[2] in targets
        layer = _LAYER.search(name)
        low = layer is not None and int(layer.group(1)) < first
        if wanted and not low:
            names.append(name)
    if not names:
        raise ConfigError(
            f"training.lora.targets={targets} with training.lora.last_layers={last_layers} names "
            f"no linear layer of the base model; it has: {', '.join(sorted(linear))}.",
            next_step="Name some of these, or set training.lora.targets to all-linear.",
        )
    return names


def _refuse_tied(model: Any, targets: str | list[str]) -> None:
    """One matrix with two uses: an update of one would be merged into both."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if isinstance(targets, str) or ends[1] is None or ends[0].weight is not ends[1].weight:
        return
    for name, module in model.named_modules():
        if module in ends and any(f".{name}".endswith(f".{target}") for target in targets):
            raise ConfigError(
                f"training.lora.targets names {name}, whose weights the base model uses both as "
                "input embedding and as head: what is trained on one could not be merged.",
                next_step="Leave it out, or set training.lora.targets to all-linear.",
            )


def quantization(kind: str, *, device: str) -> Any:
    """The transformers quantization config, or None.

    Raises:
        ConfigError: If this machine cannot quantize.
    """
    if kind == "none":
        return None
    if device != "cuda" or find_spec("bitsandbytes") is None:
        have = "no CUDA GPU" if device != "cuda" else "no bitsandbytes"
        raise ConfigError(
            f"training.quantize={kind} needs bitsandbytes and a CUDA GPU; there is {have}.",
            next_step="pip install bitsandbytes on a GPU machine, or set training.quantize=none.",
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def parameter_counts(model: Any) -> tuple[int, int]:
    """Trainable and total parameters."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters())
