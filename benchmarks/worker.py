"""An engine in a process of its own: ``python -m benchmarks.worker NAME``. One JSON line in, one out."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from threading import Thread
from typing import Any, TextIO

from benchmarks.contenders import CONTENDERS
from benchmarks.load import peak_bytes
from benchmarks.task import Contender, Files


def main(name: str, orders: TextIO, answers: TextIO) -> None:
    """Carries out orders until there are no more; errors are sent as answers, not raised."""
    contender = CONTENDERS[name][0]()
    answer_orders(lambda order: obey(contender, order), orders, answers)


def answer_orders(obey: Callable[[dict[str, Any]], dict[str, Any]], orders: TextIO, answers: TextIO) -> None:
    """Answers orders, one per line, until there are no more. Every answer has the peak memory of the worker."""
    for line in orders:
        try:
            order = json.loads(line)
            answer = {"bytes": peak_bytes()} if order["do"] == "peak" else obey(order)
        except Exception as error:  # whatever a peer raises is its result
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


def obey(contender: Contender, order: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    match order["do"]:
        case "load":
            contender.load(Files(**order["files"]))
            return {"seconds": time.perf_counter() - start}
        case "run":
            busy = time.process_time()
            tokens = contender.run(order["prompt"], order["n"], order["limit"])
            spent = time.process_time() - busy
            return {"seconds": time.perf_counter() - start, "core_seconds": spent, "tokens": tokens}
        case _:
            return contender.extra(order["do"], order["prompt"])


def private_output() -> TextIO:
    """The stream for answers. From now on, what engines print goes to standard error instead of among the answers.

    The process now also ends when its client is gone, even in the middle of an order: it would disturb what is measured
    next.
    """
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    private = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return private


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin, private_output())
