"""Texts to a server's tokens and back: through its tokenizer, or with pieces of text standing for tokens."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from klype.errors import KlypeError
from klype.sources.dialect import ENDS, IDS, Key
from klype.sources.offer import CHAT, Offer
from klype.sources.source import Message
from klype.sources.wire import Call, Wire

Tokens = tuple[int, ...]


class IdCodec:
    """The server's own token ids, by its ``/tokenize`` and ``/detokenize``."""

    def __init__(self, wire: Wire, offer: Offer) -> None:
        self._wire, self._offer = wire, offer
        self._texts: dict[Tokens, str] = {}
        self.stop = self._ends()
        self.end = self.stop[0] if self.stop else 0

    def encode(self, text: str) -> list[int]:
        return self._ask({"prompt": text}, {"content": text, "add_special": True})

    def say(self, answer: str) -> list[int]:
        """A given answer, as it goes on after a prompt: klype's own tokenizer begins it with a space."""
        return self.spelling(f" {answer.strip()}" if self._spaced() else answer)

    def spelling(self, text: str) -> list[int]:
        """A text's tokens and no others."""
        return self._ask({"prompt": text, "add_special_tokens": False}, {"content": text, "add_special": False})

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        plain = [dict(message) for message in messages]
        if self._offer.kind != "llama.cpp":
            return self._ask({"messages": plain}, {})
        written = self._wire.post(Call("/apply-template", {"messages": plain})).get("prompt", "")
        return self._ask({}, {"content": written, "add_special": True, "parse_special": True})

    def decode(self, ids: Sequence[int]) -> str:
        return self.text(tuple(ids)).removeprefix(" ")

    def text(self, ids: Tokens) -> str:
        """With the space that may lead it, without ends."""
        ids = tuple(i for i in ids if i not in self.stop)
        if ids and ids not in self._texts:
            body: dict[str, Any] = {"tokens": list(ids)}
            if self._offer.kind != "llama.cpp":
                body["model"] = self._offer.model
            answer = self._wire.post(Call("/detokenize", body))
            text = answer.get("prompt", answer.get("content"))
            if not isinstance(text, str):
                raise KlypeError(f"{self._wire.base} does not say which text its tokens are.")
            self._texts[ids] = text
        return self._texts.get(ids, "")

    def spell(self, token: int) -> bytes:
        return self.text((token,)).encode()

    def words(self, text: str) -> list[int]:
        return self.say(text)

    def number(self, key: Key) -> int:
        if not isinstance(key, int):
            raise KlypeError(f"{self._wire.base} tells a token without its id.", "Nothing of it is used.")
        return key

    def asked(self, prompt: Tokens, limit: int) -> tuple[str, dict[str, Any]]:
        return "completions", {"prompt": list(prompt), "max_tokens": limit}

    def _ask(self, body: dict[str, Any], llama: dict[str, Any]) -> list[int]:
        asked = llama if self._offer.kind == "llama.cpp" else {"model": self._offer.model, **body}
        tokens = self._wire.post(Call("/tokenize", asked)).get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) and 0 <= token < IDS for token in tokens):
            raise KlypeError(f"{self._wire.base} does not say which tokens its text is.")
        return tokens

    def _spaced(self) -> bool:
        """Whether the model's tokenizer was trained by klype, which begins every text with a space."""
        if self._offer.kind != "klype":
            return False
        bare, spaced = self.spelling("a"), self.spelling(" a")
        return bare != spaced and self.encode("a")[-len(spaced) :] == spaced

    def _ends(self) -> tuple[int, ...]:
        """Tokens that end an answer: those whose name is one token, and klype's own."""
        if self._offer.kind == "klype":
            return self._end_of_klype()
        found = []
        for name in ENDS:
            body = {"prompt": name, "add_special_tokens": False}
            ids = self._ask(body, {"content": name, "add_special": False, "parse_special": True})
            found += ids if len(ids) == 1 else []
        return tuple(dict.fromkeys(found))

    def _end_of_klype(self) -> tuple[int, ...]:
        """What ends a message in its chat template, which text alone can never spell."""
        body = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        try:
            ids = self._ask({**body, "messages": [*body["messages"], *body["messages"][:1]]}, {})
        except KlypeError:
            ids = self._ask({"prompt": "a"}, {})
        silent = [i for i in dict.fromkeys(ids) if ids.count(i) == 3 and self._spelled(i) == ""]
        return tuple(silent) or (2,)

    def _spelled(self, token: int) -> str:
        body = {"tokens": [token], "model": self._offer.model}
        return str(self._wire.post(Call("/detokenize", body)).get("prompt"))


class PieceCodec:
    """Pieces of text as tokens, numbered by their hash: the same in every process."""

    def __init__(self, wire: Wire, offer: Offer) -> None:
        self._wire, self._offer = wire, offer
        self._pieces: dict[int, tuple[str, bytes]] = {}
        self.stop = tuple(self._number("token", name.encode()) for name in ("", *ENDS))
        self.end = self.stop[0]

    def encode(self, text: str) -> list[int]:
        if not self._offer.completions:
            raise KlypeError("This server only chats: it cannot go on with a text.", "Leave out --raw.")
        return [self._number("text", text.encode())]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        if not self._offer.chat:
            raise KlypeError("This server does not chat.", "Use --raw to give it plain text.")
        return [self._number("chat", json.dumps([dict(m) for m in messages], ensure_ascii=False).encode())]

    def say(self, answer: str) -> list[int]:
        return self.spelling(answer)

    def spelling(self, text: str) -> list[int]:
        raise KlypeError("This server does not tell its tokens, so that a given answer cannot be looked at.")

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.spell, ids)).decode(errors="replace").removeprefix(" ")

    def spell(self, token: int) -> bytes:
        kind, data = self._piece(token)
        return data if kind == "token" and token not in self.stop else b""

    def words(self, text: str) -> list[int]:
        return [self._number("token", word.encode()) for word in re.findall(r"\s*\S+\s*$|\s*\S+|\s+", text)]

    def number(self, key: Key) -> int:
        return key if isinstance(key, int) else self._number("token", key)

    def asked(self, prompt: Tokens, limit: int) -> tuple[str, dict[str, Any]]:
        (kind, data), said = self._piece(prompt[0]), b"".join(map(self.spell, prompt[1:]))
        if kind == "chat":
            if len(prompt) > 1:
                raise KlypeError(
                    f"{self._wire.base} cannot be asked what follows the beginning of an answer.",
                    "See what it offers: klype doctor ADDRESS.",
                )
            return CHAT, {"messages": json.loads(data), self._offer.limit_name: limit}
        return "completions", {"prompt": (data + said).decode(errors="replace"), "max_tokens": limit}

    def _number(self, kind: str, data: bytes) -> int:
        digest = hashlib.blake2b(kind.encode() + b"\0" + data, digest_size=8).digest()
        number = int.from_bytes(digest, "big") >> 2
        if number not in self._pieces:
            self._pieces[number] = (kind, data)
            self._wire.kept.keep_piece(number, kind, data)
        return number

    def _piece(self, number: int) -> tuple[str, bytes]:
        found = self._pieces.get(number) or self._wire.kept.piece(number)
        if found is None:
            raise KlypeError("A token of a server is not known here any more: its kept answers were deleted.")
        self._pieces[number] = found
        return found
