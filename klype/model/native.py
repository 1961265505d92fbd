"""A pass over a few tokens of a packed model in one call of C (``step.c``), compiled once for the machine at hand.

torch's own way through a model is hundreds of calls a token, of 8 bits some 5,000; with a C compiler there is one.
Nobody needs it: where there is none, or where a model's shape does not suit, torch computes.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from klype import durable
from klype.durable import hash_file

if TYPE_CHECKING:
    from klype.model.cache import Cache
    from klype.model.config import ModelConfig
    from klype.model.transformer import Transformer

SOURCE = Path(__file__).with_name("step.c")
COMPILERS = ("cc", "gcc", "clang")
TUNED = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
"""The processor's own instructions and threads, as far as this compiler knows them."""
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
NOBODY = 65534
"""Who owns, seen from inside a container, what belongs to users outside it."""
FEW = 16
"""Up to this many tokens a pass, C is as fast as torch or faster."""
WIDTH = 16
"""All of a model's widths must be multiples of this."""
BLOCK = 64
"""step.c: BLOCK."""


class Matrix(ctypes.Structure):
    """step.c: Matrix."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("bits", ctypes.c_int64),
    )


class LayerFields(ctypes.Structure):
    """step.c: Layer."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    )


class ModelFields(ctypes.Structure):
    """step.c: Model."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("layers", "norm", "cos", "sin")),
        *((name, ctypes.c_int64) for name in ("layers_count", "width", "heads", "kv_heads", "head_dim", "hidden")),
        ("positions", ctypes.c_int64),
        ("kept_bits", ctypes.c_int64),
        ("norm_eps", ctypes.c_float),
    )


@dataclass(frozen=True)
class Kernel:
    """What was compiled, and how many rows of a matrix lie side by side for it."""

    library: ctypes.CDLL
    block: int = BLOCK

    def takes(self, x: Tensor) -> bool:
        """Whether these are few rows."""
        return 0 < x.numel() <= FEW * x.shape[-1]

    def product(self, matrix: Matrix, x: Tensor) -> Tensor:
        """Rows [..., in] times one matrix, computed in float32, returned as they came."""
        rows, out = x.float().contiguous(), torch.empty(*x.shape[:-1], matrix.rows)
        threads, M = ctypes.c_int(torch.get_num_threads()), ctypes.c_int64(x.numel() // x.shape[-1])
        if self.library.klype_product(ctypes.byref(matrix), _pointer(rows), _pointer(out), M, threads):
            raise MemoryError
        return out.to(x.dtype)


def kernel(folder: Path, announce: Callable[[], None] = lambda: None) -> Kernel | None:
    """``step.c`` as a library; None where it cannot be."""
    found = library((SOURCE,), folder, announce)
    return None if found is None else Kernel(found)


def library(
    sources: Sequence[Path],
    folder: Path,
    announce: Callable[[], None] = lambda: None,
    compilers: Sequence[str] = COMPILERS,
) -> ctypes.CDLL | None:
    """Compiled now, or before: it is kept in ``folder``, for these instructions of the processor and this source.

    None where there is no C compiler, or no place to keep it that is the user's alone. ``announce`` is called before
    a compilation.
    """
    compiler = next((found for name in compilers if (found := shutil.which(name))), None)
    if compiler is None or sys.platform == "win32":
        return None
    texts = [source.read_text(encoding="utf-8") for source in sources]
    about = (*texts, compiler, *FLAGS, platform.platform(), _instructions())
    name = f"{sources[-1].stem}-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        if not _mine(folder) or any(_open_to_others(parent) for parent in folder.parents):
            return None
        file = _kept(folder, name)
        if file is None:
            announce()
            file = _compile(compiler, [str(source) for source in sources if source.suffix == ".c"], folder / name)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError):
        return None


def _kept(folder: Path, name: str) -> Path | None:
    """What was compiled before, when it is still what its name says; damaged files are removed."""
    for file in folder.glob(f"{name}-*.so"):
        if file.is_symlink() or not _mine(file):
            continue
        if file.stem == f"{name}-{hash_file(file)}":
            return file
        file.unlink()
    return None


def _compile(compiler: str, sources: list[str], place: Path) -> Path:
    """The library, named for its hash: a loader maps a file as it is, and ends the process where half is missing."""
    with tempfile.TemporaryDirectory(dir=place.parent) as beside:
        new = Path(beside) / "new.so"
        for tuned in TUNED:
            command = [compiler, *FLAGS, *tuned, *sources, "-o", str(new), "-lm"]
            if subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0:
                break
        else:
            raise subprocess.SubprocessError
        file = place.with_name(f"{place.name}-{hash_file(new)}.so")
        durable.write(file, new.read_bytes())
        file.chmod(0o700)
    return file


def _mine(path: Path) -> bool:
    """Whether nobody else can have written it."""
    about = path.stat()
    return about.st_uid == os.getuid() and not about.st_mode & 0o022


def _open_to_others(folder: Path) -> bool:
    """Whether somebody else may put another folder in the place of one that lies in it: its owner, or anybody. (Inside
    a container, what belongs to nobody there is the system's.)"""
    about = folder.stat()
    anybody = about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX
    return bool(anybody) or about.st_uid not in (0, os.getuid(), NOBODY)


def _instructions() -> str:
    """What the processor can do: a home folder may be shared by machines."""
    if sys.platform != "linux":
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def suits(config: ModelConfig) -> bool:
    """A convolution, or widths that are no multiples of 16, go through torch."""
    return not config.conv and not any(size % WIDTH for size in (config.width, config.head_dim, config.hidden))


def blocked(weight_OI: Tensor, block: int) -> Tensor:
    """As ``step.c`` reads a matrix: [O / B, I, B], in bfloat16 [O / B, I / 2, B, 2], the last block of B filled up."""
    rows, columns = weight_OI.shape
    beside = 2 if weight_OI.dtype == torch.bfloat16 else 1
    filled = pad(weight_OI, (0, 0, 0, -rows % block))
    return filled.view(-1, block, columns // beside, beside).transpose(1, 2).contiguous()


def lies_in_blocks(weight_OI: Tensor, address: int, size: int, block: int) -> bool:
    """Whether so many bytes at this address are the matrix as ``blocked`` lays it: other processors have other ways."""
    if weight_OI.shape[1] % WIDTH:
        return False
    wanted = blocked(weight_OI, block)
    found = (ctypes.c_char * size).from_address(address)
    return wanted.nbytes == size and torch.equal(wanted.flatten(), torch.frombuffer(found, dtype=wanted.dtype))


def matrix_at(address: int, weight_OI: Tensor, bias_O: Tensor | None = None, scale_O: Tensor | None = None) -> Matrix:
    """What ``step.c`` is told of a matrix in blocks. The float32 bias and scale must be kept alive beside it."""
    bits = 8 * weight_OI.element_size()
    return Matrix(address, _address(scale_O), _address(bias_O), *weight_OI.shape, bits)


class Stepper:
    """A packed model's passes over at most ``FEW`` tokens, of rows that have nothing on shelves.

    What lies between the matrices is computed in float32; only the cache is in the model's own precision.
    """

    def __init__(self, model: Transformer, kernel: Kernel) -> None:
        self.kernel = kernel
        self.config = model.config
        self.kept: list[Tensor] = []
        c, rotated = model.config, model.config.rope_theta > 0
        self.layers = (LayerFields * c.layers)()
        for fields, layer in zip(self.layers, model.layers, strict=True):
            for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm"):
                norm = getattr(layer, name)
                setattr(fields, name, None if norm is None else self._float32(norm.weight))
            for name in ("qkv", "out", "gate_up", "down"):
                setattr(fields, name, getattr(layer, name).fields)
        self.fields = ModelFields(
            layers=ctypes.addressof(self.layers),
            norm=self._float32(model.norm.weight),
            cos=self._float32(model.cos) if rotated else None,
            sin=self._float32(model.sin) if rotated else None,
            layers_count=c.layers,
            width=c.width,
            heads=c.heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_dim,
            hidden=c.hidden,
            norm_eps=c.norm_eps,
        )

    def takes(self, cache: Cache, T: int) -> bool:
        """Whether T more tokens a row are few enough, and inside the window."""
        few = 0 < T * cache.rows <= FEW and not cache.shared.any()
        return few and bool(cache.lengths.max() + T <= self.config.window)

    def hidden(self, x_BTD: Tensor, cache: Cache) -> Tensor:
        """States after the last norm, [B, T, D], of embeddings, which are overwritten; the rows are T longer then."""
        B, T, _ = x_BTD.shape
        x, dtype = x_BTD.float().contiguous(), x_BTD.dtype
        positions_BT = cache.extend(T)
        rows_BT = torch.arange(B)[:, None].expand(B, T).contiguous()
        for fields, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            fields.keys, fields.values = keys.data_ptr(), values.data_ptr()
        self.fields.positions = cache.keys[0].shape[2]
        self.fields.kept_bits = 8 * cache.keys[0].element_size()
        out_BTD = torch.empty_like(x)
        pointers = [_pointer(tensor) for tensor in (x, out_BTD, rows_BT, positions_BT)]
        threads = ctypes.c_int(torch.get_num_threads())
        run = self.kernel.library.klype_pass
        if run(ctypes.byref(self.fields), *pointers, ctypes.c_int64(B * T), threads):
            raise MemoryError
        return out_BTD.to(dtype)

    def _float32(self, weight: Tensor) -> int:
        self.kept.append(weight.detach().float().contiguous())
        return self.kept[-1].data_ptr()


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    assert tensor.dtype == torch.float32
    return tensor.data_ptr()


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())
