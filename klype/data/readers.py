"""Readers of documents and rows: text, JSON, CSV, Parquet and Arrow, also as .gz or .zst; in folders and globs.

A file that cannot be read, a broken line or a row without a needed field is an error that names it; with ``skip_bad``
such rows are left out and counted in a `BadRows`.
"""

import csv
import hashlib
import io
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from klype.data import files
from klype.errors import KlypeError, UsageError
from klype.jsons import parse

_SAVE = "Save it as UTF-8 (klype run and klype train take --encoding, often latin-1)."
QUOTES = "Check its quotation marks."
BLOCK = 16 * 2**20  # bytes
_SHOWN = 20  # bad rows whose messages are kept; all are counted
_NAMED = 3  # of them, those shown in the terminal


_LIMIT = threading.Lock()  # the csv module's limit on the length of a field is global
# the most characters of a row, and the most read again because a quotation mark before them was never closed
ROW, AGAIN = 32 * 2**20, 64 * 2**20
# characters counted per line in addition to its own, for the time and memory that a line takes
LINE = 64


@dataclass(frozen=True, slots=True)
class TextDocument:
    """A document and its source: a file, and a row counted from 1 (0: the whole file)."""

    text: str
    source: str
    row: int = 0


@dataclass(slots=True)
class BadRows:
    """Rows that were skipped: their number, and messages about the first ones. Unless ``skip`` is True the first one is
    an error; None instead of False means that the caller has no option to skip them, so that no hint names it.

    ``repeated``: the number of texts that had occurred before.
    """

    skip: bool | None = None
    count: int = 0
    shown: list[str] = field(default_factory=list)
    repeated: int = 0

    def summary(self) -> str:
        """A sentence with the number of skipped rows and the first few messages."""
        few = [" ".join(message.split()).rstrip(".") for message in self.shown[:_NAMED]]
        rows, more = ("row was", "") if self.count == 1 else ("rows were", f"; {self.count - len(few):,} more")
        return f"{self.count:,} bad {rows} skipped: {'; '.join(few)}{more if self.count > len(few) else ''}."

    def add(self, message: str, hint: str = "") -> None:
        """Records a bad row, or raises KlypeError if bad rows are not skipped."""
        if not self.skip:
            mend = "Fix it." if self.skip is None else "Fix it, or leave such rows out with --skip-bad."
            raise KlypeError(message, hint or mend)
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(message)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files are read. ``text_field``: the field of a row that holds the text ("": see ``row_text``).

    ``language``: of fields whose name ends in a language (title_nb, title_en), only those of this one are used.
    ``bad`` collects bad rows. ``unpacked``: bytes that a packed file may hold; ``block``: bytes of a text file that are
    read at a time. UsageError for an unknown ``encoding``.
    """

    encoding: str = "utf-8"
    text_field: str = ""
    language: str = ""
    bad: BadRows = field(default_factory=BadRows)
    unpacked: int = files.UNPACKED
    block: int = BLOCK

    def __post_init__(self) -> None:
        check_encoding(self.encoding)


# (row number from 1, fields)
Rows = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class TableFormat:
    """A format of tables: its reader, and what its rows are numbered by (the line that a row begins on, or the row)."""

    read: Callable[[Path, ReadOptions], Rows]
    unit: Literal["line", "row"] = "row"


def read_texts(paths: files.Paths, options: ReadOptions | None = None) -> Iterator[TextDocument]:
    """The documents of files, folders and globs in the order of their names, without exact duplicates and empty ones.

    Raises KlypeError when a file is missing, unreadable, broken or in another encoding, or when no document is left.
    """
    options = options or ReadOptions()
    seen: set[bytes] = set()
    for file in files.files_of(paths, KINDS):
        for document in _documents(file, options):
            own = digest(document.text)
            if own in seen:
                options.bad.repeated += 1
            elif document.text.strip():
                seen.add(own)
                yield document
    if not seen:
        raise KlypeError(f"There is no text in {files.names(paths)}.", "Give a file that holds some text.")


def digest(text: str) -> bytes:
    """A hash of the text without white space at its ends."""
    return hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=16).digest()


def read_rows(file: Path, options: ReadOptions | None = None) -> Rows:
    """The rows of a table: number (from 1; in .jsonl and .csv that of the line) and fields. KlypeError for a broken
    file."""
    table = TABLES.get(files.kind_of(file))
    if table is None:
        raise UsageError(f"{file} is not a table of rows.", files.readable(TABLES))
    yield from table.read(file, options or ReadOptions())


def place(file: Path, number: int) -> str:
    """The name of a row in messages: its file and its line or row number, as ``read_rows`` counts."""
    return f"{file} {TABLES[files.kind_of(file)].unit} {number}"


def check_encoding(name: str) -> None:
    """Raises UsageError unless Python has a text encoding of this name (rot13, say, is none)."""
    try:
        "a".encode(name)
    except (LookupError, ValueError) as error:
        raise UsageError(f"--encoding: there is no encoding '{name}'.", "Try utf-8, latin-1 or utf-16.") from error


def decode(raw: bytes, encoding: str, where: str, offset: int = 0) -> str:
    """The text of bytes that begin at ``offset`` of the file ``where``; KlypeError names the first invalid byte."""
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise KlypeError(
            f"{where} is not {encoding}: byte {offset + error.start} is 0x{raw[error.start]:02x}.", _SAVE
        ) from error


def _documents(file: Path, options: ReadOptions) -> Iterator[TextDocument]:
    if files.kind_of(file) in TABLES:
        for number, row in read_rows(file, options):
            text = row_text(of_language(row, options.language), options.text_field)
            if text is None:
                wanted = f'text field "{options.text_field}"' if options.text_field else "field with text"
                hint = "" if options.bad.skip is None else "Name the field with --text-field, or use --skip-bad."
                options.bad.add(f"{place(file, number)} has no {wanted}.", hint)
            else:
                yield TextDocument(text, str(file), number)
    else:
        try:
            yield from _text_parts(file, options)
        except KlypeError as error:
            options.bad.add(error.message, error.hint)


def _text_parts(file: Path, options: ReadOptions) -> Iterator[TextDocument]:
    """A text file as one document; a large one as several that end with a line, so that it is never all in memory."""

    def document(raw: bytes, offset: int = 0, number: int = 0) -> TextDocument:
        text = decode(raw, options.encoding, str(file), offset)
        return TextDocument(text.replace("\r\n", "\n"), str(file), number)

    if _is_wide(options.encoding):
        yield document(files.read_bytes(file))
        return
    offset, part, rest = 0, 0, b""
    with files.open_stream(file, options.unpacked) as stream:
        while block := files.read(stream, file, options.block):
            rest += block
            cut = rest.rfind(b"\n") + 1 if len(block) == options.block else len(rest)
            if not cut and len(rest) >= files.LONGEST and not (cut := rest.rfind(b" ") + 1):
                raise KlypeError(
                    f"{file} has {files.LONGEST >> 20} MiB without a space: that is not text.", "Check the file."
                )
            if cut:
                part += 1
                yield document(rest[:cut], offset, part if offset or cut < len(rest) else 0)
                offset, rest = offset + cut, rest[cut:]
    if rest:
        yield document(rest, offset, part + 1)


def _is_wide(encoding: str) -> bool:
    """Whether a newline is not the byte 0x0a, so that bytes cannot be split into lines."""
    return "\n".encode(encoding) != b"\n"


def read_json_lines(file: Path, options: ReadOptions) -> Rows:
    for number, line in _decode_lines(file, options):
        try:
            row = _json(line) if line.strip() else None
        except ValueError as error:
            options.bad.add(f"{file} line {number} is not JSON: {error}.")
            continue
        if isinstance(row, dict):
            yield number, row
        elif line.strip():
            options.bad.add(f"{file} line {number} is not a JSON object.")


def _decode_lines(file: Path, options: ReadOptions) -> Iterator[tuple[int, str]]:
    """Numbers and texts of lines; those not in the encoding are bad rows (in a wide encoding the whole file is one)."""

    def decoded(raw: bytes, where: str, offset: int = 0) -> str | None:
        try:
            return decode(raw, options.encoding, where, offset)
        except KlypeError as error:
            options.bad.add(error.message, error.hint)
            return None

    if _is_wide(options.encoding):
        yield from enumerate(io.StringIO(decoded(files.read_bytes(file), str(file)) or ""), 1)
        return
    offset = 0
    with files.open_stream(file, options.unpacked) as stream:
        for number, (length, raw) in enumerate(files.lines(stream, file, (b"\n",)), 1):
            if raw is None:
                options.bad.add(f"{file} line {number} is longer than {files.LONGEST >> 20} MiB.")
            elif (line := decoded(raw, f"{file} line {number}", offset)) is not None:
                yield number, line
            offset += length


def _json(text: str) -> Any:
    """Parsed JSON; ValueError also for an escaped lone surrogate, which is half a character."""
    try:
        content = parse(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"see character {error.pos + 1}") from None
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("an escape is half a character (a lone surrogate)") from None
    return content


def read_json(file: Path, options: ReadOptions) -> Rows:
    try:
        content = _json(decode(files.read_bytes(file), options.encoding, str(file)))
    except ValueError as error:
        raise KlypeError(f"{file} is not JSON: {error}.", "One object a line goes into .jsonl.") from error
    rows: Iterable[Any] = content if isinstance(content, list) else [content]
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield number, row
        else:
            options.bad.add(f"{file} entry {number} is not a JSON object.")


def read_csv(file: Path, options: ReadOptions, delimiter: str = ",") -> Rows:
    """Rows of separated values. Invalid bytes are kept by surrogateescape until their row is known."""
    encoding, header = options.encoding, list[str]()
    with files.open_stream(file, options.unpacked) as stream:
        text: IO[str]
        if _is_wide(encoding):
            text = io.StringIO(decode(files.read_bytes(file), encoding, str(file)), newline="")
        else:
            text = io.TextIOWrapper(stream, encoding, "surrogateescape", newline="")
        for number, fields in read_separated(files.lines(text, file, ("\n", "\r")), file, delimiter):
            where = place(file, number)
            strange = isinstance(fields, list) and re.search("[\udc80-\udcff]", "".join(fields))
            if isinstance(fields, csv.Error):
                wrong, hint = f"{where} is not a row of a table: {fields}.", QUOTES
            elif strange:
                wrong, hint = f"{where} is not {encoding}: it has the byte 0x{ord(strange[0]) - 0xDC00:02x}.", _SAVE
            elif header and len(fields) != len(header):
                wrong, hint = f"{where} has another number of fields than the header.", ""
            else:
                if header:
                    yield number, dict(zip(header, fields, strict=True))
                header = header or fields
                continue
            if not header:
                raise KlypeError(wrong, hint)  # without a header no row can be read
            options.bad.add(wrong, hint)


def read_separated(
    found: Iterator[tuple[int, str | None]], file: Path, delimiter: str
) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Line number (from 1) and fields of each row that is not blank, or the error; after a broken row reading goes on
    at the next line. KlypeError when too many quotation marks are never closed, so that rows cannot be told apart."""
    row: deque[str] = deque()  # lines of the row that is being read
    ahead: deque[str] = deque()  # lines to be read again
    at, again, size = 0, 0, 0

    def feed() -> Iterator[str]:
        nonlocal size
        while True:
            try:
                line = ahead.popleft() if ahead else next(found)[1]
            except StopIteration:
                return
            if line and not at and not row:
                line = line.removeprefix("\ufeff")
            row.append(line or "")  # a line that is too long only keeps its place
            size += len(row[-1]) + LINE
            if line is None or size > ROW:
                raise csv.Error(f"it has more than {ROW >> 20} million characters")
            yield line

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        row.clear()
        size = 0
        try:
            with _LIMIT:
                before = csv.field_size_limit(2**31 - 1)
                try:
                    fields = next(reader)
                finally:
                    csv.field_size_limit(before)
        except StopIteration:
            return
        except csv.Error as error:
            again += size
            if again > AGAIN:
                why = "too many quotation marks are never closed"
                raise KlypeError(
                    f"{place(file, at + 1)} begins what cannot be read as a table: {why}.", QUOTES
                ) from error
            yield at + 1, error
            row.popleft()
            ahead.extendleft(reversed(row))
            at += 1
            reader = csv.reader(feed(), delimiter=delimiter, strict=True)
            continue
        if fields:
            yield at + 1, fields
        at += len(row)


def read_columns(file: Path, options: ReadOptions) -> Rows:
    yield from enumerate(files.rows_of(file, options.unpacked), 1)


# formats by file ending, for klype run, its questions, instructions and preferences, and the studio's upload
TABLES: Mapping[str, TableFormat] = {
    ".jsonl": TableFormat(read_json_lines, "line"),
    ".ndjson": TableFormat(read_json_lines, "line"),
    ".json": TableFormat(read_json),
    ".csv": TableFormat(read_csv, "line"),
    ".tsv": TableFormat(partial(read_csv, delimiter="\t"), "line"),
    ".parquet": TableFormat(read_columns),
    ".arrow": TableFormat(read_columns),
}
# file endings that hold texts
KINDS = (*files.PLAIN, *TABLES)


def row_text(row: dict[str, Any], name: str = "") -> str | None:
    """The text of a row: the named field; else title and text (or content, body …); else all fields of text.

    Lists of strings are joined as paragraphs. None when there is no text.
    """
    if name:
        return _join_text(row.get(name))
    main = next((t for n in ("text", "content", "body", "document", "tekst") if (t := _join_text(row.get(n)))), None)
    if main:
        title = _join_text(row.get("title")) or _join_text(row.get("tittel"))
        return main if not title or main.lstrip().startswith(title) else f"{title}\n\n{main}"
    ignored = ("id", "uid", "licence", "license", "url", "lang", "language", "credits", "source", "split", "word_class")
    parts = [_join_text(value) for name, value in row.items() if name not in ignored and not name.startswith("credits")]
    return "\n".join(part for part in parts if part) or None


def of_language(row: dict[str, Any], language: str) -> dict[str, Any]:
    """The row without the fields that have a counterpart in this language."""
    own = {name.removesuffix(f"_{language}") for name in row if language and name.endswith(f"_{language}")}
    return {n: v for n, v in row.items() if n.endswith(f"_{language}") or n.rpartition("_")[0] not in own}


def _join_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip("\n") or None
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return "\n\n".join(value)
    return None
