"""Models from the Hugging Face hub, in its client's cache or klype's own folder. No pickles and no code are fetched."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klype import durable
from klype.errors import KlypeError, UsageError, short_error
from klype.sources.model_files import HUB, closest_pull, find_named, models_folder

INSTALL = "Install it: pip install 'klype[hf]'."
REPOSITORY = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
# files of a hub repository that are fetched: no pickles, no code
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
CARD = ("README.md", "LICENSE*")
ABOUT = "pulled.json"


def fetch(name: str) -> Path:
    """The folder of ``owner/name`` or ``owner/name@revision`` in the hub's local cache, fetched if it is not there."""
    repository, _, revision = name.partition("@")
    if not re.fullmatch(REPOSITORY, repository):
        raise UsageError(f"hf:{name} is not the name of a model on the hub.", "Write hf:owner/name.")
    with _hub_errors(name):
        from huggingface_hub import snapshot_download

        asked: dict[str, Any] = {"revision": revision or None, "allow_patterns": list(WANTED)}
        with suppress(OSError, ValueError):  # not in the cache
            return Path(snapshot_download(repository, local_files_only=True, **asked))
        return Path(snapshot_download(repository, **asked))


@dataclass(frozen=True, slots=True)
class Download:
    """A download of a model into klype's folder. ``files``: their sizes in bytes; ``hashes``: the SHA-256 of those for
    which the hub has it."""

    name: str
    repository: str
    revision: str
    files: dict[str, int]
    hashes: dict[str, str]

    @property
    def size(self) -> int:
        """The total size in bytes."""
        return sum(self.files.values())

    @property
    def draft(self) -> Path:
        return models_folder() / f".{self.name}-{self.revision[:12]}.part"

    def done(self) -> int:
        """Bytes that have been downloaded, including earlier attempts."""
        found = (self.draft / file for file in self.files)
        return sum(file.stat().st_size for file in found if file.is_file())

    def run(self) -> Path:
        """Downloads the model atomically and returns its folder. An interrupted download is resumed, which the hub's
        own client does not do. Raises KlypeError for files whose hash is wrong."""
        folder = models_folder() / self.name
        durable.private_folder(folder.parent)
        with open(folder.parent / ".lock", "w") as lock, _hub_errors(self.repository):
            durable.lock(lock.fileno())
            if folder.is_dir():  # another process was first
                return folder
            from huggingface_hub import hf_hub_url
            from huggingface_hub.file_download import http_get
            from huggingface_hub.utils._headers import build_hf_headers
            from huggingface_hub.utils.tqdm import disable_progress_bars

            disable_progress_bars()
            self.draft.mkdir(exist_ok=True)
            for file, size in self.files.items():
                with open(self.draft / file, "ab") as stream:
                    url, begun = hf_hub_url(self.repository, file, revision=self.revision), stream.tell()
                    http_get(url, stream, resume_size=begun, headers=build_hf_headers(), expected_size=size)
                    stream.flush()
                    os.fsync(stream.fileno())
                if self.hashes.get(file, "") not in ("", durable.hash_file(self.draft / file)):
                    (self.draft / file).unlink()
                    raise KlypeError(f"{file} of {self.repository} came damaged.", "Fetch it again.")
            about = {"repository": self.repository, "revision": self.revision, "bytes": self.size}
            durable.write(self.draft / ABOUT, json.dumps(about, indent=2))
            os.rename(self.draft, folder)
            durable.sync_folder(folder.parent)
            for stale in folder.parent.glob(f".{self.name}-*.part"):  # of older revisions
                shutil.rmtree(stale)
        return folder


def look_up(name: str) -> Download:
    """The download of a short name or ``owner/name``, as the hub describes it. Raises KlypeError if the hub has no such
    model in safetensors."""
    known = HUB.get(name)
    repository = known.repository if known else name.removeprefix("hf:")
    if "/" not in repository or not re.fullmatch(REPOSITORY, repository):
        meant = closest_pull(name)
        raise UsageError(
            f"There is no model called {name[:200]} to fetch.",
            f"Did you mean {meant}?" if meant else "See what there is: klype pull",
        )
    with _hub_errors(repository):
        from huggingface_hub import HfApi

        told = HfApi().model_info(repository, files_metadata=True)
    top = [file for file in told.siblings or () if "/" not in file.rfilename]
    wanted = [file for file in top if any(map(Path(file.rfilename).match, (*WANTED, *CARD)))]
    files = {file.rfilename: file.size or 0 for file in wanted}
    hashes = {file.rfilename: file.lfs.sha256 for file in wanted if file.lfs is not None}
    if "config.json" not in files or not any(file.endswith(".safetensors") for file in files):
        raise KlypeError(f"{repository} has no config.json with weights as safetensors.", "Name another repository.")
    short = name if known else repository.rpartition("/")[2]
    return Download(short, repository, str(told.sha), files, hashes)


def find_pulled(name: str) -> Path | None:
    """The folder of a model that was fetched before, else None. Raises UsageError if another repository has its
    name."""
    repository = name.removeprefix("hf:")
    folder = find_named(name if name in HUB else repository.rpartition("/")[2])
    if folder is None or folder.is_file():  # a package's
        return folder
    there = str(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["repository"])
    if name not in HUB and there != repository:
        raise UsageError(f"The name {folder.name} is taken by {there}.", f"Remove {folder} first.")
    return folder


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turns errors of the hub's client into one-sentence KlypeErrors."""
    try:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    except ImportError:
        raise KlypeError("Models by hub name need the package huggingface_hub.", INSTALL) from None
    try:
        yield
    except KlypeError:
        raise
    except GatedRepoError:
        raise KlypeError(f"hf:{name} is only for those who accepted its terms.", "Accept them, then log in.") from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"There is no model {name.partition('@')[0]} on the hub, or it is private.", "Check its name."
        ) from None
    except Exception as error:  # offline, refused, out of disk: the client raises many kinds
        raise KlypeError(
            f"hf:{name} is not on this machine, and the hub cannot be reached ({short_error(error)}).",
            "Go online once, or give the folder of a model that is here.",
        ) from None
