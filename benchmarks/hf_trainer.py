"""transformers' Trainer on a Llama, as the comparisons run it: without saving, logging or progress bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.train_task import Shape


def llama(shape: Shape, positions: int) -> Any:
    """A new model of this shape and context length."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=positions,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def train(
    model: Any, rows: Sequence[Any], folder: str, on_step: Callable[[int], None], **options: Any
) -> tuple[float, int]:
    """Trains on ``rows`` of tokens; returns the loss and the rows per step. ``options``: of the Trainer, if not its
    defaults."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            on_step(state.global_step)

    arguments = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    examples = [{"input_ids": row, "labels": row} for row in rows]
    done = Trainer(model=model, args=arguments, train_dataset=examples, callbacks=[Watch()]).train()
    return float(done.training_loss), arguments.per_device_train_batch_size
