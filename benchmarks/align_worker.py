"""A trainer in a process of its own: ``python -m benchmarks.align_worker NAME``. One JSON line in, one out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, TextIO

from benchmarks.align_task import Given, Trainer
from benchmarks.align_trainers import TRAINERS
from benchmarks.worker import answer_orders, private_output


def main(name: str, orders: TextIO, answers: TextIO) -> None:
    """Carries out orders until there are no more; errors are sent as answers, not raised."""
    trainer = TRAINERS[name][0]()
    answer_orders(lambda order: obey(trainer, order), orders, answers)


def obey(trainer: Trainer, order: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    match order["do"]:
        case "load":
            trainer.load(Given.read(Path(order["given"])))
            return {"seconds": time.perf_counter() - start}
        case "train":
            return trainer.train(order["task"], Path(order["folder"]))
        case _:
            raise AssertionError(f"there is no order {order['do']}")


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin, private_output())
