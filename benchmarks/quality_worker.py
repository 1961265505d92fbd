"""A trainer in a process of its own: ``python -m benchmarks.quality_worker NAME``. One JSON line in, one out."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from benchmarks.quality_task import Given, Trainer, in_blocks
from benchmarks.quality_trainers import TRAINERS
from benchmarks.worker import answer_orders, private_output


def main(name: str, orders: TextIO, answers: TextIO) -> None:
    """Carries out orders until there are no more; errors are sent as answers, not raised."""
    trainer = TRAINERS[name][0]()
    answer_orders(lambda order: obey(trainer, order), orders, answers)


def obey(trainer: Trainer, order: dict[str, Any]) -> dict[str, Any]:
    start, busy = time.perf_counter(), time.process_time()
    given = Given(**order["given"])
    match order["do"]:
        case "load":
            trainer.load(given.threads, given.cache)
            return {"seconds": time.perf_counter() - start}
        case "learn":
            learnt = trainer.learn(given)
            spent = {"seconds": time.perf_counter() - start, "core_seconds": time.process_time() - busy}
            return {**learnt.json(), **spent}
        case "score":
            bits_M, size_M = in_blocks(*trainer.score(given.held_out))
            return {"bits": bits_M, "bytes": size_M}
        case _:
            raise AssertionError(f"there is no order {order['do']}")


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin, private_output())
