"""A training state in the shards of several processes, by torch.distributed.checkpoint: saved by N, loaded by M.

Its safetensors format is used, in which a file says in its header which rows of which tensor it holds: no pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from klype.durable import hash_file
from klype.errors import KlypeError
from klype.train import parallel


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Every process writes its own rows, and waits until its disk has them. OSError when one cannot."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(_present(tensors), storage_writer=writer)
    except CheckpointException as error:
        raise _disk(error) from error


def read_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies into the tensors what is saved of them, whoever saved it."""
    here = _present(tensors)
    reader = HuggingFaceStorageReader(str(folder))
    shapes = {name: about.size for name, about in reader.read_metadata().state_dict_metadata.items()}  # type: ignore[union-attr]
    if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        raise KlypeError("The saved optimizer state belongs to a model of another shape; start in another folder.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one process alone may read what several wrote
            load(here, storage_reader=reader)
    except CheckpointException as error:
        raise _disk(error) from error


def hashes(files: list[Path]) -> dict[str, str]:
    """SHA-256 by name; every process reads its part of the files."""
    own = {file.name: hash_file(file) for file in files[parallel.rank() :: parallel.ranks()]}
    return {name: digest for part in parallel.from_all(own) for name, digest in part.items()}


def _present(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without those of which this process has no rows: there is nothing to write, or to read into."""
    return {
        name: tensor.detach()
        for name, tensor in tensors.items()
        if not isinstance(tensor, DTensor) or tensor.to_local().numel()
    }


def _disk(error: CheckpointException) -> BaseException:
    """What went wrong, where it was the disk of any process."""
    found = [cause for cause, _ in error.failures.values()]
    disk = next((cause for cause in found if isinstance(cause, OSError)), None)
    return disk or error
