"""A model given to others is the same model: as GGUF to klype and llama.cpp, as a folder to a hub."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from klype.cli import exits
from klype.cli.main import call
from klype.cli.pull_export import push, write_repository
from klype.errors import KlypeError
from klype.model.checkpoint import load, save
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from tests import contract
from tests.toys import toy

pytest.importorskip("gguf")
TOKENIZER = Tokenizer.train(["Hunden drakk vann. Katten drakk melk, og de andre katter drakk ikke."], 270, TEMPLATE)
TOKENS = torch.arange(24).reshape(2, 12) * 7 % TOKENIZER.vocab_size


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True}, {"qk_norm": True}, {"tie": True}], ids=str)
def test_export_and_import_is_the_identity(tmp_path: Path, changes: dict[str, bool]) -> None:
    model = toy("llama", vocab_size=TOKENIZER.vocab_size, width=32, hidden=64, kv_heads=2, **changes)
    save(tmp_path / "m", model, TOKENIZER, {"name": "toy"})
    load(tmp_path / "m").to_gguf(tmp_path / "m.gguf")
    again = load(tmp_path / "m.gguf")
    with torch.no_grad():
        torch.testing.assert_close(again.model(TOKENS), model(TOKENS), atol=1e-6, rtol=0)
    text = "Hunden drakk melk. æøå 😀\n 12"
    assert again.tokenizer.encode(text) == TOKENIZER.encode(text)
    assert (again.tokenizer.ends, again.tokenizer.template) == (TOKENIZER.ends, TEMPLATE)
    assert not list(tmp_path.glob(".*gguf*"))


def test_the_convolution_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "m", toy("conv", vocab_size=TOKENIZER.vocab_size), TOKENIZER, {})
    with pytest.raises(KlypeError, match=r"a convolution before attention, which llama\.cpp cannot compute"):
        load(tmp_path / "m").to_gguf(tmp_path / "m.gguf")
    assert exits.exit_code(call, ["export", str(tmp_path / "m"), "--gguf", str(tmp_path / "m.gguf")]) == 1
    assert "convolution" in capsys.readouterr().err
    assert not (tmp_path / "m.gguf").exists()


def test_the_hub_folder_is_a_checkpoint_with_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    save(run / "align", toy("llama", vocab_size=TOKENIZER.vocab_size), TOKENIZER, {"licence": "mit"})
    (run / "align" / "metrics.jsonl").write_text("{}\n")
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 400, "unit": "share"}
    (run / "run.json").write_text(json.dumps({"stages": {"aligned": {"right": figure}}, "seconds": {"total": 12.0}}))
    out = tmp_path / "pushed"
    argv = ["export", str(run), "--hub", "owner/name", "--dry-run", "--out", str(out), "--json"]
    assert exits.exit_code(call, argv) == 0
    pushed = json.loads(capsys.readouterr().out)
    contract.holds(contract.Exported, pushed)
    files = pushed["files"]
    assert "metrics.jsonl" not in files
    # what vLLM's loader reads of a directory: architecture, weights in safetensors, tokenizer, generation defaults
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    card = (out / "README.md").read_text()
    for part in ('license: "mit"', "## Intended use", "| aligned | right | 0.5 | 0.4 to 0.6 | 400 |", "Not measured."):
        assert part in card
    assert exits.exit_code(call, argv) == 2
    assert exits.exit_code(call, ["export", str(run), "--hub", "nobody"]) == 2
    assert exits.exit_code(call, ["export", str(run)]) == 2


class Hub(BaseHTTPRequestHandler):
    """The hub's HTTP interface, as huggingface_hub calls it: what is committed is kept. Every file goes in whole."""

    created: ClassVar[list[dict[str, Any]]] = []
    committed: ClassVar[dict[str, bytes]] = {}
    tokens: ClassVar[set[str | None]] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.tokens.add(self.headers["authorization"])
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self._say({"url": f"http://{self.headers['host']}/owner/name", "id": "owner/name"})
        elif self.path.startswith("/api/models/owner/name/preupload/"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._say({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif self.path.startswith("/api/models/owner/name/commit/"):
            rows = [json.loads(line) for line in body.splitlines()]
            files = [row["value"] for row in rows if row["key"] == "file"]
            self.committed.update({file["path"]: base64.b64decode(file["content"]) for file in files})
            url = f"http://{self.headers['host']}/owner/name/commit/0123"
            self._say({"success": True, "commitOid": "0123", "commitUrl": url})
        elif self.path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        else:
            self.send_error(404)

    def do_GET(self) -> None:
        self._say({"id": "owner/name", "sha": "0" * 40, "siblings": []})

    def log_message(self, *_: object) -> None: ...

    def _say(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.slow
def test_what_is_pushed_is_the_folder_and_loads_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    model = toy("llama", vocab_size=TOKENIZER.vocab_size)
    save(tmp_path / "m", model, TOKENIZER, {"licence": "mit", "name": "m"})
    assert exits.exit_code(call, ["export", str(tmp_path / "m"), "--hub", "owner/name", "--json"]) == 1
    assert "Nobody is logged in" in capsys.readouterr().out
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write_repository(load(tmp_path / "m"), None, "owner/name", tmp_path / "repository")
    try:
        api = huggingface_hub.HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_secret")
        where = push(tmp_path / "repository", "owner/name", api)
    finally:
        server.shutdown()
        server.server_close()
    assert where.endswith("owner/name/commit/0123")
    assert Hub.tokens == {"Bearer hf_secret"}
    assert [(row["name"], row["organization"]) for row in Hub.created] == [("name", "owner")]
    here = {file.name: file.read_bytes() for file in (tmp_path / "repository").iterdir()}
    assert Hub.committed == here
    assert "metrics.jsonl" not in here
    card = here["README.md"].decode()
    assert huggingface_hub.ModelCard(card).data.license == "mit"
    assert "## Intended use" in card
    for name, data in Hub.committed.items():
        (tmp_path / "fetched").mkdir(exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(data)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "fetched").model(TOKENS), model(TOKENS), atol=0, rtol=0)
    (tmp_path / "fetched" / "README.md").write_text("another card")  # as one does on a hub
    load(tmp_path / "fetched")
    (tmp_path / "fetched" / "config.json").write_text("{}")
    with pytest.raises(KlypeError, match=r"config\.json is damaged"):
        load(tmp_path / "fetched")


def test_a_hub_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "config.json").write_text("{}")
    api = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token="hf_secret")
    with pytest.raises(KlypeError, match=r"owner/name was not pushed: .*\.") as error:
        push(tmp_path, "owner/name", api)
    assert "hf_secret" not in str(error.value)


def test_llama_cpp_answers_alike(tmp_path: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    model = toy("llama", vocab_size=TOKENIZER.vocab_size, width=64, hidden=64, window=128)
    save(tmp_path / "m", model, TOKENIZER, {})
    load(tmp_path / "m").to_gguf(tmp_path / "m.gguf")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(tmp_path / "m.gguf")
    parameters.n_ctx, parameters.warmup, parameters.cpuparams.n_threads = 128, False, 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(parameters)
    prompt = TOKENIZER.encode_document("Hunden drakk")[:-1]
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 1, "ignore_eos": True}
    answer = server.handle_completions(body)
    # llama.cpp tells the parts of one character as one entry: bytes are compared, not ids
    theirs = b"".join(bytes(entry["bytes"]) for entry in answer["choices"][0]["logprobs"]["content"])
    text = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(12):
            logits = model(text)[:, -1]
            logits[:, list(TOKENIZER.ends)] = -torch.inf
            text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
    assert theirs == b"".join(map(TOKENIZER.token_bytes, text[0, len(prompt) :].tolist()))
