"""gptmini serve: the page's engine over HTTP, what it refuses, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
import torch
from web_server import TEXT, error_of, running, train_run

import gptmini
from gptmini.cli.main import main
from gptmini.web import catalog
from gptmini.web.catalog import Catalog
from gptmini.web.server import _plotting_library

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def url(run):
    with running(run) as url:
        yield url


@pytest.fixture(scope="module")
def loaded(run):
    return gptmini.load(run)


def steps_of(response):
    """The JSON of each event of a stream, which ends with [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


# ------------------------------------------------------------------------------------------ the engine


def test_the_page_is_told_what_the_model_is(url):
    (info,) = httpx.get(f"{url}/api/models").json()
    assert (info["id"], info["run"], info["checkpoints"]) == ("tiny", "tiny", [2, 4])
    assert (info["n_layer"], info["n_head"], info["n_embd"], info["vocab_size"]) == (2, 2, 16, 257)
    assert "text.txt" in info["sentence"]


def test_tokens_have_their_bytes_where_these_are_no_characters(url):
    tokens = httpx.post(f"{url}/api/tokenize", json={"model": "tiny", "text": "aÄ"}).json()
    assert [(token["text"], token.get("bytes")) for token in tokens] == [
        ("a", None), ("\ufffd", [0xC3]), ("\ufffd", [0x84]),
    ]  # fmt: skip


def test_generated_tokens_are_those_of_generate_text_with_the_models_own_probabilities(url, loaded):
    options = {"max_new_tokens": 12, "seed": 3, "temperature": 0.8, "top_k": 50}
    body = {"model": "tiny", "ids": list(b"To be"), **options}
    steps = steps_of(httpx.post(f"{url}/api/generate", json=body))
    ids = [step["token"]["id"] for step in steps]
    model, tokenizer = loaded
    (text,) = gptmini.generate_text(model, tokenizer, "To be", **options)
    assert ("To be" + tokenizer.decode(ids).rstrip("\ufffd")) == text
    probabilities = model(torch.tensor([[*b"To be", *ids]]))[0, 4:-1].softmax(dim=-1)  # (12, V)
    for step, expected in zip(steps, probabilities, strict=True):
        assert step["probability"] == pytest.approx(expected[step["token"]["id"]].item(), rel=1e-4)
        assert [p for _, p in step["top"]] == pytest.approx(expected.topk(20).values.tolist(), rel=1e-4)


def test_a_text_goes_on_inside_a_character(url):
    body = {"model": "tiny", "ids": [0xF0, 0x9F], "max_new_tokens": 2, "temperature": 5.0, "seed": 0}
    steps = steps_of(httpx.post(f"{url}/api/generate", json=body))
    assert all(0x80 <= step["token"]["id"] < 0xC0 for step in steps)  # continuation bytes


def test_without_ids_a_text_starts_where_a_document_does(url, loaded):
    steps = steps_of(
        httpx.post(f"{url}/api/generate", json={"model": "tiny", "ids": [], "max_new_tokens": 1})
    )
    assert len(steps) == 2
    assert steps[0] == {
        "token": {"id": ord("T"), "text": "T", "special": False},
        "probability": None,
        "top": [],
    }


def test_next_reads_the_end_of_a_long_text(url, run):
    ids = list(TEXT.encode())[:100]
    top = httpx.post(f"{url}/api/next", json={"model": "tiny@4", "ids": ids}).json()["top"]
    model, _ = gptmini.load(run / "checkpoints" / "step-00000004")
    expected = model(torch.tensor([ids[-32:]]))[0, -1].softmax(dim=-1).topk(20)
    assert [p for _, p in top] == pytest.approx(expected.values.tolist(), rel=1e-4)


def test_the_checkpoints_of_a_run_are_models(url, run):
    for step in (2, 4):
        answer = httpx.post(f"{url}/api/next", json={"model": f"tiny@{step}", "ids": [84]}).json()
        model, _ = gptmini.load(run / "checkpoints" / f"step-{step:08d}")
        expected = model(torch.tensor([[84]]))[0, -1].softmax(dim=-1).topk(20)
        assert [token["id"] for token, _ in answer["top"]] == expected.indices.tolist()
        assert [p for _, p in answer["top"]] == pytest.approx(expected.values.tolist(), rel=1e-4)


def test_a_run_that_saves_is_loaded_again(run):
    served = Catalog([str(run)])
    before = served.load("tiny").model
    assert served.load("tiny").model is before
    os.utime(run / "checkpoints")
    assert served.load("tiny").model is not before


def test_few_models_stay_in_memory(run, monkeypatch):
    monkeypatch.setattr(catalog, "MAX_LOADED", 1)
    served = Catalog([str(run)])
    first = served.load("tiny@2").model
    served.load("tiny@4")
    assert served.load("tiny@2").model is not first


# ------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("api/next", {"model": "none", "ids": [1]}, 404, "no model is called 'none' here"),
        ("api/next", {"model": "tiny@3", "ids": [1]}, 404, "tiny has no checkpoint of step 3 any more"),
        ("api/next", {"model": "../tiny", "ids": [1]}, 404, "no model is called '../tiny' here"),
        ("api/next", {"model": "tiny", "ids": [257]}, 400, "token id 257 is outside the vocabulary of 257"),
        ("api/next", {"model": "tiny", "ids": "a"}, 400, "request: ids = 'a': needs a list of whole numbers"),
        ("api/next", {"model": "tiny"}, 400, "request: ids is missing"),
        ("api/inspect", {"model": "tiny", "ids": []}, 400, "there is no text to look inside"),
        ("api/generate", {"model": "tiny", "ids": [1], "top_p": 2}, 400, "request: top_p = 2: needs a"),
        ("api/tokenize", {"model": "tiny", "text": "\ud800"}, 400, "half of a surrogate pair"),
        ("api/tokenize", [], 400, "body: Input should be"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(url, path, body, status, message):
    found, text = error_of(
        httpx.post(f"{url}/{path}", content=json.dumps(body), headers={"content-type": "application/json"})
    )
    assert (found, message in text) == (status, True), text


@pytest.mark.parametrize("body", [b"{", b"[" * 50_000, b"\xff\xfe", b"9" * 5000, b""])
def test_what_is_no_json_is_refused(url, body):
    status, _ = error_of(
        httpx.post(f"{url}/api/next", content=body, headers={"content-type": "application/json"})
    )
    assert status == 400


@pytest.mark.parametrize(
    "path", ["server.py", "..%2freport%2fpage.py", "%2e%2e/x.js", "report.html%00.js", "docs", "nowhere"]
)
def test_no_other_file_has_an_address(url, path):
    assert httpx.get(f"{url}/{path}").status_code == 404


def test_a_run_is_named_not_found_by_a_path(url, run):
    status, message = error_of(httpx.get(f"{url}/api/watch", params={"run": str(run)}))
    assert (status, "no run is called" in message) == (404, True)


def test_the_plotting_library_is_served_where_it_is_installed(url, monkeypatch):
    monkeypatch.setattr("gptmini.web.server.find_spec", lambda name: None)
    _plotting_library.cache_clear()
    status, message = error_of(httpx.get(f"{url}/vega.js"))
    assert (status, "needs vl-convert-python" in message) == (404, True)
    monkeypatch.undo()
    pytest.importorskip("vl_convert")
    answer = httpx.get(f"{url}/vega.js", timeout=300)
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "window.vegaEmbed" in answer.text


# ------------------------------------------------------------------------------------------ the command


def test_what_is_no_model_ends_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["serve"]) == 2
    assert main(["serve", "runs/none"]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["serve", "empty"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert "runs/: no run there to serve: train one" in first
    assert "runs/none: no such folder" in second
    assert "empty: holds no checkpoint" in third


def test_a_port_in_use_ends_with_one_line(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", str(run), "--port", str(port)]) == 1
    assert (
        capsys.readouterr().err
        == f"gptmini: 127.0.0.1:{port}: Address already in use: choose another --port\n"
    )


def test_a_host_that_is_none_ends_with_one_line(run, capsys):
    assert main(["serve", str(run), "--host", "no.such.host.invalid"]) == 2
    assert main(["serve", str(run), "--host", "192.0.2.1"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "--host = no.such.host.invalid: no such host" in first
    assert "--host = 192.0.2.1: is no address of this machine" in second


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_without_the_packages_a_line_says_how_to_install_them(package, run, monkeypatch, capsys):
    for name in list(sys.modules):
        if name.startswith("gptmini.web."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", str(run)]) == 2
    assert (
        capsys.readouterr().err
        == f"gptmini: gptmini serve needs fastapi uvicorn: {sys.executable} -m pip install fastapi uvicorn\n"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_server_prints_its_address_and_ctrl_c_ends_it(host, run):
    command = [sys.executable, "-m", "gptmini", "serve", "--port", "0", "--host", host]
    server = subprocess.Popen(
        command, cwd=run.parent.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = server.stdout.readline()
        address = re.search(r"http://\S+", line)[0]
        (info,) = httpx.get(f"{address}api/models".replace("0.0.0.0", "127.0.0.1")).json()
        assert info["id"] == "tiny"
        with httpx.stream("GET", f"{address}api/watch?run=tiny".replace("0.0.0.0", "127.0.0.1")) as events:
            lines = events.iter_lines()
            next(lines)
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 130
    finally:
        server.kill()
        _, err = server.communicate()
    warning = "other machines reach this server: whoever has the address with its token\n"
    assert err == ("" if host == "127.0.0.1" else warning)
