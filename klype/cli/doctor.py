"""``klype doctor`` and ``config``: what is installed, what this machine can do, a server offers, can be set."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal, patiently, print_table, to_json
from klype.option import Option
from klype.words import number

PACKAGES = ("klype", "torch", "numpy", "scipy", "pydantic", "tokenizers", "safetensors", "nicegui")
OPTIONAL = ("transformers", "gguf", "datasets", "ordb")


def command(
    terminal: Terminal,
    addresses: Annotated[
        list[str] | None, Option("Servers to ask: http://host:port/v1#model.", argument=True, metavar="[ADDRESS…]")
    ] = None,
    seed: o.Seed = 0,  # as every command's: nothing is drawn here
    out: o.OutFile = None,
) -> None:
    """Show versions, cores, memory, and the measured speed of multiplication and memory; or what servers offer."""
    if addresses:
        endpoints = [endpoint(address) for address in addresses]
        if not terminal.as_json:
            for found in endpoints:
                show_endpoint(terminal, found)
        terminal.document({"versions": versions(), "endpoints": endpoints}, out)
        return
    with patiently(terminal.words("doctor.measuring")):
        document = {"versions": versions(), "machine": machine()}
    if not terminal.as_json:
        show(terminal, document)
    terminal.document(document, out)


def endpoint(address: str) -> dict[str, Any]:
    """What a server offers, asked anew, and what is therefore whole, bounded or unavailable."""
    from klype.errors import UsageError
    from klype.sources.capabilities import capabilities_of, client_of
    from klype.sources.opening import SERVER, kind_of

    if kind_of(address) is not SERVER:
        raise UsageError(f"{address} is not the address of a server.", "Write http://host:port/v1#model.")
    http, model = client_of(address)
    return {"address": http.base, **capabilities_of(http, model, again=True).json()}


def show_endpoint(terminal: Terminal, found: dict[str, Any]) -> None:
    w = terminal.words
    said = {"True": w("doctor.yes"), "False": w("doctor.no")}
    shown = {name: value for name, value in found.items() if name not in ("address", "measures")}
    texts = {name: ", ".join(value) if isinstance(value, list) else str(value) for name, value in shown.items()}
    rows = [[w(f"endpoint.{name}"), said.get(text, text)] for name, text in texts.items()]
    print_table(terminal.console, found["address"], [w("doctor.what"), w("doctor.value")], rows)
    terminal.console.print()
    rows = [[w(f"endpoint.{name}"), w(f"doctor.{how}")] for name, how in found["measures"].items()]
    print_table(terminal.console, "", [w("doctor.measure"), w("doctor.therefore")], rows)


def versions() -> dict[str, str | None]:
    """Versions of Python and of what klype stands on; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in (*PACKAGES, *OPTIONAL):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """Cores, memory, and short measurements (about two seconds)."""
    from klype import device

    threads = device.set_threads()
    chosen = device.pick_device()
    total, available = device.memory_gib()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": device.processor(),
        "cores": device.usable_cores(),
        "threads": threads,
        "memory_gib": round(total, 2),
        "memory_available_gib": round(available, 2),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 2),
        "device": str(chosen),
        "gemm_float32_gflops": round(device.gemm_gflops("float32"), 1),
        "gemm_bfloat16_gflops": round(device.gemm_gflops("bfloat16"), 1),
        "bandwidth_gbs": round(device.bandwidth_gbs(), 1),
        "precision": device.pick_precision("auto", device.pick_device("cpu")),
        "energy_counter": device.EnergyMeter().available,
        "thread_policy": device.thread_policy(),
    }


def show(terminal: Terminal, document: dict[str, Any]) -> None:

    w, lang, m = terminal.words, terminal.lang, document["machine"]
    memory = w(
        "doctor.memory_value",
        available=number(m["memory_available_gib"], lang, 1),
        total=number(m["memory_gib"], lang, 1),
    )
    rows = {
        "processor": f"{m['processor']} ({m['system']})",
        "cores": str(m["cores"]),
        "threads": str(m["threads"]),
        "memory": memory,
        "disk": w("doctor.disk_value", free=number(m["disk_free_gib"], lang, 1)),
        "device": m["device"],
        "gemm_float32": f"{number(m['gemm_float32_gflops'], lang, 0)} GFLOP/s",
        "gemm_bfloat16": f"{number(m['gemm_bfloat16_gflops'], lang, 0)} GFLOP/s",
        "bandwidth": f"{number(m['bandwidth_gbs'], lang, 1)} GB/s",
        "precision": m["precision"],
        "energy": w("doctor.energy_yes" if m["energy_counter"] else "doctor.energy_no"),
        "policy": ", ".join(f"{name}={value}" for name, value in m["thread_policy"].items()),
    }
    head = [w("doctor.what"), w("doctor.value")]
    print_table(terminal.console, w("doctor.title"), head, [[w(f"doctor.{key}"), text] for key, text in rows.items()])
    terminal.console.print()
    installed = [[name, version or w("doctor.missing")] for name, version in document["versions"].items()]
    print_table(terminal.console, w("doctor.versions"), head, installed)


def schema_command(out: o.OutFile = None, as_json: o.Json = False) -> None:
    """Print the JSON schema of recipes (klype run --recipe FILE.toml, --set KEY=VALUE)."""
    from klype.config import schema
    from klype.runs.recipe import Recipe

    terminal = Terminal(as_json)
    document = schema(Recipe)
    terminal.answer(to_json(document))
    terminal.document(document, out)
