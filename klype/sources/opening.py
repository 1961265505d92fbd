"""Opens a MODEL by its name, whatever kind it is.

A new kind is a row of KINDS and a function that opens it. Heavy modules are imported only when a model is opened: the
command line reads the table for its help.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from klype.environment import cache_folder, language
from klype.errors import UsageError, not_native
from klype.sources.hub import fetch
from klype.sources.model_files import NEWEST_FIRST, ModelFiles, find_path

if TYPE_CHECKING:
    import torch

    from klype.engine.engine import Engine, Event
    from klype.model.attention import Backend
    from klype.model.checkpoint import LoadedModel
    from klype.sources.http_client import HttpClient
    from klype.sources.source import NativeSource, Source
    from klype.text.chat import Message
    from klype.values import Request, Trace

Made = TypeVar("Made")
LARGE = 30_000_000  # bytes of weights from which on a message says that a model is being opened
UNKNOWN_WINDOW = 1 << 20  # tokens, of a server that does not say


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How a MODEL is opened; see ``open_model``."""

    precision: str = "float32"
    measured: bool = False
    budget: str = ""
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A MODEL that can be asked, whatever runs it: klype's own engine, transformers or a server.

    ``window``: tokens of prompt and answer together; ``vocabulary``: number of tokens, 0 if unknown. ``control_name``:
    a control token's name; ``encode_answer``: the tokens of a given answer; ``encode_bare``: a text's tokens without
    one that begins it, from klype's own server only. ``template``: it has a chat template. ``native``: the loaded
    checkpoint, if klype computes the model itself. ``exact``: tokens have the same bytes alone and together. ``http``:
    the client of a server, which counts the cost. ``can_continue``: it can continue a given beginning of an answer,
    which some servers cannot.
    """

    name: str
    found: ModelFiles
    source: Source
    window: int
    vocabulary: int
    token_bytes: Callable[[int], bytes]
    control_name: Callable[[int], str | None]
    encode_answer: Callable[[str], list[int]]
    template: bool
    flops_per_token: Callable[[int], int] | None = None
    native: LoadedModel | None = None
    exact: bool = True
    http: HttpClient | None = None
    encode_bare: Callable[[str], list[int]] | None = None
    can_continue: bool = True
    how: OpenOptions = field(default_factory=OpenOptions)

    @property
    def loaded(self) -> LoadedModel:
        """The loaded checkpoint. Raises UsageError if klype does not compute the model itself."""
        if self.native is None:
            raise not_native(self.name)
        return self.native

    @property
    def engine(self) -> Engine:
        """The engine of a local model. Raises UsageError for a server's."""
        from klype.sources.source import EngineSource

        if not isinstance(self.source, EngineSource):
            raise not_native(self.name)
        return self.source.engine

    @property
    def stop(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return tuple(self.source.codec.stop)

    def as_raw(self, raw: bool | None) -> bool:
        """Whether text is given without the chat template: as asked, else if the model has none or was only
        pre-trained."""
        return self.found.stage == "pretrain" or not self.template if raw is None else raw

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, up to where the answer begins."""
        return self.source.codec.prompt(messages)

    def encode_text(self, text: str) -> list[int]:
        """The tokens of a text as the beginning of a document."""
        return self.source.codec.encode(text)

    def user_prompt(self, text: str, raw: bool | None = None, before: Sequence[Message] = ()) -> list[int]:
        """The prompt for a user's text after the messages ``before``, by the chat template or as a document
        (``as_raw``)."""
        said = [*before, {"role": "user", "content": text}]
        return self.encode_text("\n".join(m["content"] for m in said)) if self.as_raw(raw) else self.prompt(said)

    def token_text(self, token: int) -> str:
        """A token's text, with bytes that are no UTF-8 escaped, or a control token's name."""
        name = self.control_name(token)
        return name if name is not None else self.token_bytes(token).decode("utf-8", "backslashreplace")

    def flops(self, trace: Trace) -> int | None:
        """FLOP of the prompt and all steps, with attention over half of the tokens on average; None if unknown."""
        tokens = len(trace.prompt) + len(trace.steps)
        return None if self.flops_per_token is None else tokens * self.flops_per_token(tokens // 2)


def open_model(
    name: str, precision: str = "float32", measured: bool = False, budget: str = "", device: str = "auto"
) -> OpenModel:
    """Finds, checks and loads a MODEL. Architectures that klype does not compute itself go through transformers.

    ``precision`` and ``device`` (see ``pick_device``) have no effect on a server's model. ``measured``: its
    probabilities are looked at, so that precision "auto" never chooses int8. ``budget``: limits for a server, such as
    "500requests,20000tokens". Raises KlypeError for what cannot be opened.
    """
    how = OpenOptions(precision, measured, budget, device)
    return replace(kind_of(name).open(name, how), how=how)


def open_files(name: str, how: OpenOptions) -> OpenModel:
    """Opens a MODEL that has local files. Raises UsageError if a server's budget is given."""
    if how.budget:
        said = f"--budget {how.budget}: {name} is not a server's model."
        raise UsageError(said, "Requests and tokens are counted there.")
    from klype.device import pick_device, set_threads

    device, found = pick_device(how.device), find_model(name)
    weights = [found.folder] if found.folder.is_file() else found.folder.glob("*.safetensors")
    if (size := sum(file.stat().st_size for file in weights)) > LARGE:
        _tell("model.opening", name=name, size=f"{size / 1e6:.0f} MB")
    if found.folder.is_dir():
        from klype.sources.hf_open import open_hf, why_not_native

        if why_not_native(found.folder):
            if how.precision == "int8":
                raise UsageError(
                    f"--precision int8 is for models that klype computes itself; {name} goes through transformers."
                )
            set_threads()
            dtype = "float32" if how.precision == "auto" else how.precision
            return _here(name, found, open_hf(found.folder, name, dtype, device))
    set_threads()
    return _open_native(name, found, how, device)


def _open_native(name: str, found: ModelFiles, how: OpenOptions, device: torch.device) -> OpenModel:
    """Opens a model that klype computes itself; on the CPU with compiled code."""
    from klype.device import pick_precision
    from klype.engine.engine import Engine
    from klype.model import checkpoint
    from klype.model.attention import TORCH
    from klype.model.compiled import CompiledBackend, compiled_library
    from klype.model.prepacked import decodes, fastest_alone, prepack
    from klype.model.prepacked import kernel as make_kernel

    precision, on_cpu = how.precision, device.type == "cpu"
    as_stored = on_cpu and found.folder.suffix.lower() == ".gguf"
    if precision == "auto" and as_stored:
        precision = "float32"  # computed with the quantised weights as they are stored, which is fastest
    if precision == "auto" and on_cpu and not how.measured:
        precision = fastest_alone(kernel=_compile(make_kernel))
    chosen = pick_precision(precision, device)
    dtype = "float32" if chosen == "int8" else chosen
    kernel = _compile(make_kernel) if as_stored and chosen == "float32" else None
    loaded = checkpoint.load(found.folder, dtype=dtype, known=cache_folder(), device=device, kernel=kernel)
    if kernel is None and on_cpu and decodes(loaded.config):
        kernel = _compile(make_kernel)
    backend: Backend = CompiledBackend(lambda: _compile(compiled_library)) if on_cpu else TORCH
    loaded = replace(loaded, model=prepack(loaded.model.with_backend(backend), chosen, kernel))
    engine = Engine(loaded.model, decode_bytes=loaded.tokenizer.token_bytes, name=str(found.folder))
    return native(name, found, loaded, engine)


def _compile(make: Callable[[Path, Callable[[], None]], Made]) -> Made:
    """Calls ``make(folder, announce)``, saying so if it has to compile, and again if that fails."""
    told: list[str] = []

    def announce() -> None:
        told.append("model.compiling")
        _tell(told[-1], folder=cache_folder())

    made = make(cache_folder(), announce)
    if told and made is None:
        _tell("model.uncompiled")
    return made


def _tell(key: str, **values: object) -> None:
    from klype.words import words
    from klype.words.plain import aside

    aside(words(language())(key, **values))


def native(name: str, found: ModelFiles, loaded: LoadedModel, engine: Engine) -> OpenModel:
    """An OpenModel that klype computes itself."""
    from klype.sources.source import NativeCodec, NativeSource

    chat = loaded.chat if loaded.tokenizer.template else None
    return _here(name, found, NativeSource(engine, NativeCodec(loaded.tokenizer, chat)), loaded)


def _here(name: str, found: ModelFiles, source: NativeSource, loaded: LoadedModel | None = None) -> OpenModel:
    """An OpenModel that is computed on this machine."""
    tokenizer, runner = source.codec.tokenizer, source.engine.runner
    return OpenModel(
        name, found, source, runner.window, runner.vocab_size, tokenizer.token_bytes, tokenizer.name,
        tokenizer.encode_answer, tokenizer.template is not None, runner.flops_per_token, loaded,
    )  # fmt: skip


def open_server(address: str, how: OpenOptions) -> OpenModel:
    """Opens a server's model. Raises KlypeError if there is no server or no such model, or the key is wrong."""
    from klype.sources.capabilities import capabilities_of, client_of, meter
    from klype.sources.http_client import Budget
    from klype.sources.remote import RemoteSource

    http, model = client_of(address, Budget.parse(how.budget))
    source = RemoteSource(http, capabilities_of(http, model))
    codec, caps, http.budget.say = source.codec, source.caps, meter()
    control = dict.fromkeys(codec.stop, "<end>").get
    window, encode_bare = caps.window or UNKNOWN_WINDOW, codec.encode_bare if caps.kind == "klype" else None
    return OpenModel(
        source.name, ModelFiles(Path(source.name)), source, window, caps.vocabulary, codec.token_bytes, control,
        codec.encode_answer, caps.chat, exact=False, http=http, encode_bare=encode_bare, can_continue=caps.can_continue,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelKind:
    """A kind of MODEL, recognised by how its name ``begins``. ``help``: how such a name is written.

    ``short(name)``: the model's name in the studio. ``open(name, options)``: opens it. ``find(name)``: its files; None
    for a kind without local files, of which errors say that it is ``where``.
    """

    begins: tuple[str, ...]
    help: str
    short: Callable[[str], str]
    open: Callable[[str, OpenOptions], OpenModel]
    find: Callable[[str], ModelFiles] | None = None
    where: str = "elsewhere"


def kind_of(name: str) -> ModelKind:
    """The kind of a MODEL's name; any name that is of no other kind is a path."""
    return next((kind for kind in KINDS if name.startswith(kind.begins)), PATH)


def kinds_in_words(files: bool = False) -> str:
    """How MODELs are named, for help: those of all kinds, or of the kinds with local ``files``."""
    *first, last = (kind.help for kind in (PATH, *KINDS) if kind.find is not None or not files)
    return f"{', '.join(first)} or {last}"


def find_model(name: str) -> ModelFiles:
    """The files of a MODEL; the hub's are fetched. Raises UsageError if it has no local files."""
    kind = kind_of(name)
    if kind.find is None:
        raise UsageError(f"{name} is {kind.where}, and this needs the model's own files.", "Give its folder.")
    return kind.find(name)


def _short(name: str) -> str:
    """The last part of a path; RUN/STAGE for a stage."""
    path = Path(name)
    return f"{path.resolve().parent.name}/{path.name}" if path.name in NEWEST_FIRST else path.name


PATH = ModelKind(
    (), "a run, one of its stages (RUN/finetune), a model's folder, a GGUF file", _short, open_files, find_path
)
SERVER = ModelKind(
    ("http://", "https://"),
    "a server's http://host:port/v1#name",
    short=lambda name: name.partition("#")[2] or name,
    open=open_server,
    where="behind a server",
)
KINDS: tuple[ModelKind, ...] = (
    ModelKind(("hf:",), "hf:owner/name", lambda name: name.rpartition("/")[2], open_files,
              lambda name: ModelFiles(fetch(name.removeprefix("hf:")))),
    SERVER,
)  # fmt: skip


def fit_limit(opened: OpenModel, prompt: Sequence[int], limit: int) -> int:
    """``limit``, or what the window leaves after the prompt. Raises UsageError if that is nothing."""
    if limit < 1:
        raise UsageError(f"--limit should be at least 1 (it is {limit}).")
    if not prompt:
        raise UsageError("There is no text to continue.")
    left = opened.window - len(prompt)
    if left < 1:
        raise UsageError(
            f"The text has {len(prompt)} tokens, and {opened.name} reads {opened.window} at most, the answer included.",
            "Shorten it.",
        )
    return min(limit, left)


def decode_stream(parts: Iterable[tuple[bytes, Trace | None]]) -> Iterator[tuple[str, Trace | None]]:
    """Decodes an answer's bytes as they arrive, whole characters only and without one leading space. The last part has
    the trace."""
    decoder, begun = codecs.getincrementaldecoder("utf-8")(errors="replace"), False
    for data, trace in parts:
        text = decoder.decode(data, trace is not None)
        yield text if begun else text.removeprefix(" "), trace
        begun = begun or text != ""


def stream(opened: OpenModel, request: Request) -> Iterator[tuple[str, Trace | None]]:
    """Yields the answer piece by piece; the last item has the trace. Closing the generator cancels the request."""
    with closing(cast("Generator[Event, None, None]", opened.source.generate([request]))) as events:
        yield from decode_stream((opened.token_bytes(event.step.token), event.trace) for event in events)
