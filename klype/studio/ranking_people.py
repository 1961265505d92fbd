"""Who ranks: a name, which its owner may lock with a key of their own so that nobody else ranks in it."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from klype.durable import private_folder
from klype.errors import KlypeError, UsageError
from klype.jsons import finite
from klype.preferences.records import MODEL, SIMULATED
from klype.runs.record import write_json

FILE = "annotators.json"
NAME_MOST, KEY_MOST, PEOPLE_MOST = 60, 200, 10_000


@dataclass(frozen=True, slots=True)
class People:
    """``home`` is klype's own folder; keys are kept there as salted hashes (scrypt), readable by their owner only."""

    home: Path

    def enter(self, name: str, key: str) -> str:
        """The name as it is kept. The first key given with a name locks it; UsageError when it is not the right one."""
        clean = unicodedata.normalize("NFC", " ".join(name.split()))
        if not clean or len(clean) > NAME_MOST or not clean.isprintable():
            raise UsageError(f"A name has from 1 to {NAME_MOST} visible characters.")
        if clean.startswith((SIMULATED, MODEL)):
            raise UsageError(f"Names that begin with '{SIMULATED}' or '{MODEL}' are kept for machines.")
        if len(key) > KEY_MOST:
            raise UsageError(f"A key has at most {KEY_MOST} characters.")
        known = self._read()
        kept = known.get(clean)
        if kept is None and key:
            salt = secrets.token_hex(16)
            if len(known) >= PEOPLE_MOST:
                raise UsageError("There is no room for more names with keys.")
            self._write({**known, clean: f"{salt}:{_hash(key, salt)}"})
        elif kept is not None:
            salt, _, hashed = kept.partition(":")
            if not hmac.compare_digest(_hash(key, salt), hashed):
                raise UsageError(f"{clean} is locked with a key, and this is not it.")
        return clean

    def _read(self) -> dict[str, str]:
        file = self.home / FILE
        try:
            found = finite(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise KlypeError(f"{file} cannot be read: {error}.", "Mend or remove it.") from error
        return {str(name): str(kept) for name, kept in found.items()} if isinstance(found, dict) else {}

    def _write(self, known: dict[str, str]) -> None:
        private_folder(self.home)
        file = self.home / FILE
        write_json(file, known)
        os.chmod(file, 0o600)


def _hash(key: str, salt: str) -> str:
    return hashlib.scrypt(key.encode(), salt=bytes.fromhex(salt), n=1 << 14, r=8, p=1).hex()
