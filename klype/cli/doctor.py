"""``klype doctor`` and ``config``: versions, this machine's speed, what a server offers; the schema of recipes."""

import platform
import shutil
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from klype.cli import options as o
from klype.cli.terminal import Terminal, patiently, print_table, to_json
from klype.errors import UsageError
from klype.option import Option
from klype.words import number

PACKAGES = ("klype", "torch", "numpy", "scipy", "pydantic", "tokenizers", "safetensors", "nicegui")
OPTIONAL = ("transformers", "gguf", "datasets", "ordb")


def command(
    terminal: Terminal,
    addresses: Annotated[
        list[str] | None, Option("Servers to ask: http://host:port/v1#model.", argument=True, metavar="[ADDRESS…]")
    ] = None,
    seed: o.Seed = 0,  # every command has it; nothing is drawn here
    out: o.OutFile = None,
) -> None:
    """Show versions, cores, memory, and the measured speed of multiplication and memory; or what servers offer."""
    if addresses:
        document: dict[str, Any] = {"versions": versions(), "endpoints": [endpoint(address) for address in addresses]}
    else:
        with patiently(terminal.words("doctor.measuring")):
            document = {"versions": versions(), "machine": machine()}
    if not terminal.as_json:
        show(terminal, document)
    terminal.document(document, out)


def endpoint(address: str) -> dict[str, Any]:
    """What a server offers, asked anew, and which measures are therefore exact, bounded or unavailable."""
    from klype.sources.capabilities import capabilities_of, client_of
    from klype.sources.opening import SERVER, kind_of

    if kind_of(address) is not SERVER:
        raise UsageError(f"{address} is not the address of a server.", "Write http://host:port/v1#model.")
    http, model = client_of(address)
    return {"address": http.base, **capabilities_of(http, model, again=True).json()}


def versions() -> dict[str, str | None]:
    """Versions of Python and of packages that klype uses; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), **dict.fromkeys((*PACKAGES, *OPTIONAL))}
    for name in (*PACKAGES, *OPTIONAL):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Cores, memory, and measured speeds (two seconds)."""
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
    w, lang, console = terminal.words, terminal.lang, terminal.console
    head = [w("doctor.what"), w("doctor.value")]
    for found in document.get("endpoints", ()):
        said = {"True": w("doctor.yes"), "False": w("doctor.no")}
        shown = {name: value for name, value in found.items() if name not in ("address", "measures")}
        texts = {name: ", ".join(v) if isinstance(v, list) else str(v) for name, v in shown.items()}
        rows = [[w(f"endpoint.{name}"), said.get(text, text)] for name, text in texts.items()]
        print_table(console, found["address"], head, rows)
        console.print()
        rows = [[w(f"endpoint.{name}"), w(f"doctor.{how}")] for name, how in found["measures"].items()]
        print_table(console, "", [w("doctor.measure"), w("doctor.therefore")], rows)
    if (m := document.get("machine")) is None:
        return
    free, total = (number(m[f"memory{kind}_gib"], lang, 1) for kind in ("_available", ""))
    told = {
        "processor": f"{m['processor']} ({m['system']})",
        "cores": str(m["cores"]),
        "threads": str(m["threads"]),
        "memory": w("doctor.memory_value", available=free, total=total),
        "disk": w("doctor.disk_value", free=number(m["disk_free_gib"], lang, 1)),
        "device": m["device"],
        "gemm_float32": f"{number(m['gemm_float32_gflops'], lang, 0)} GFLOP/s",
        "gemm_bfloat16": f"{number(m['gemm_bfloat16_gflops'], lang, 0)} GFLOP/s",
        "bandwidth": f"{number(m['bandwidth_gbs'], lang, 1)} GB/s",
        "precision": m["precision"],
        "energy": w("doctor.energy_yes" if m["energy_counter"] else "doctor.energy_no"),
        "policy": ", ".join(f"{name}={value}" for name, value in m["thread_policy"].items()),
    }
    print_table(console, w("doctor.title"), head, [[w(f"doctor.{key}"), text] for key, text in told.items()])
    console.print()
    installed = [[name, version or w("doctor.missing")] for name, version in document["versions"].items()]
    print_table(console, w("doctor.versions"), head, installed)


def schema_command(out: o.OutFile = None, as_json: o.Json = False) -> None:
    """Print the JSON schema of recipes (klype run --recipe FILE.toml, --set KEY=VALUE)."""
    from klype.config import schema
    from klype.runs.recipe import Recipe

    terminal = Terminal(as_json)
    document = schema(Recipe)
    terminal.answer(to_json(document))
    terminal.document(document, out)
