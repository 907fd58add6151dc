"""What gptmini serve refuses, gives up and makes wait: other hosts and origins, sizes, times, queues."""

import asyncio
import queue
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from web_load import Load
from web_server import error_of, running, train_run

from gptmini.web import engine_api, guard


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("safety"))


@pytest.fixture(scope="module")
def url(run):
    with running(run) as url:
        yield url


def raw(url, request):
    """What the server answers to these bytes until it closes the connection."""
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while block := connection.recv(4096):
            answer += block
        return answer


# ------------------------------------------------------------------------------------------ safety


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "127.0.0.1.evil.example"]
)
def test_another_host_is_refused(url, host):
    status, message = error_of(httpx.get(f"{url}/api/models", headers={"host": host}))
    assert (status, "is none of this server's" in message) == (403, True)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9000", "[::1]:8000", "LOCALHOST"])
def test_this_machines_names_are_let_in(url, host):
    assert httpx.get(f"{url}/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "file://"])
def test_a_page_of_another_origin_is_refused(url, origin):
    status, message = error_of(
        httpx.get(f"{url}/api/watch", params={"run": "tiny"}, headers={"origin": origin})
    )
    assert (status, "a page of another origin" in message) == (403, True)
    body = {"model": "tiny", "ids": [1]}
    assert httpx.post(f"{url}/api/next", json=body, headers={"origin": origin}).status_code == 403
    assert httpx.post(f"{url}/api/next", json=body, headers={"origin": url}).status_code == 200


def test_every_answer_forbids_scripts_of_others(url):
    for answer in (
        httpx.get(f"{url}/api/models"),
        httpx.get(f"{url}/nowhere"),
        httpx.get(url, headers={"host": "x"}),
    ):
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_with_a_token_every_address_begins_with_it(run):
    with running(run, token="secret") as url:
        for path in ("", "/", "/secret", "/secre/", "/api/models", "/secrett/api/models", "/%C3%A9/"):
            assert httpx.get(url + path).status_code == 401, path
        assert httpx.get(f"{url}/secret/api/models").status_code == 200
        bearer = {"authorization": "Bearer secret"}
        assert httpx.get(f"{url}/v1/models", headers=bearer).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer no"}).status_code == 401


def test_a_body_that_is_too_large_is_not_read(url):
    head = "POST /api/next HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    announced = raw(url, f"{head}content-length: 100000000\r\n\r\n".encode())
    assert b"413" in announced.splitlines()[0]
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert (
        b"413" in raw(url, f"{head}transfer-encoding: chunked\r\n\r\n".encode() + chunk * 17).splitlines()[0]
    )


def test_a_request_that_does_not_come_is_given_up(url, monkeypatch):
    monkeypatch.setattr(guard, "REQUEST_SECONDS", 0.2)
    assert raw(url, b"") == b""
    assert raw(url, b"GET / HT") == b""
    head = b"POST /api/next HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n"
    assert b"408" in raw(url, head + b"{").splitlines()[0]


def endless(started, ended):
    """In place of `continue_texts`: a text without end, that says when it begins and when it is closed."""

    def steps(model, *args, **options):
        try:
            while True:
                started.set()
                time.sleep(0.001)
                yield 0, 84, torch.zeros(257)
        finally:
            ended.set()

    return steps


def test_a_client_that_goes_away_stops_its_generation(url, monkeypatch):
    started, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(engine_api, "continue_texts", endless(started, ended))
    with httpx.stream("POST", f"{url}/api/generate", json={"model": "tiny", "ids": [84]}) as answer:
        lines = answer.iter_lines()  # when it goes, so does the connection
        next(lines)
        assert not ended.is_set()
    assert ended.wait(20)


def test_requests_of_one_model_take_turns_and_too_many_are_refused(url, monkeypatch):
    started, ended = threading.Event(), threading.Event()
    monkeypatch.setattr("gptmini.web.jobs.MAX_WAITING", 2)
    monkeypatch.setattr(engine_api, "continue_texts", endless(started, ended))
    body, answers = {"model": "tiny", "ids": [84]}, queue.Queue()

    def ask():
        answers.put(httpx.post(f"{url}/api/next", json=body, timeout=60))

    others = [threading.Thread(target=ask) for _ in range(2)]
    with httpx.stream("POST", f"{url}/api/generate", json=body):
        for thread in others:
            thread.start()
        refused = answers.get(timeout=60)  # one has the last place in the queue, the other one none
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        # Typing is answered meanwhile.
        assert httpx.post(f"{url}/api/tokenize", json={"model": "tiny", "text": "a"}).status_code == 200
        assert answers.empty()
    assert answers.get(timeout=60).status_code == 200
    for thread in others:
        thread.join()


def test_every_client_of_many_gets_a_whole_answer_or_an_error(run, monkeypatch):
    monkeypatch.setattr("web_load.BODY", 2 * guard.MAX_BODY_BYTES)
    kinds = {"whole", "stream", "inspect", "tokenize", "broken off"}
    with running(run) as url:
        load = Load(url, "tiny", lambda load: load.wrong or kinds <= load.counts.keys(), clients=6)
        asyncio.run(load.run())
    assert load.wrong == []


def test_a_bug_is_answered_and_printed(url, monkeypatch, capfd):
    monkeypatch.setattr(engine_api, "next_tokens", lambda *arguments: 1 / 0)
    status, message = error_of(httpx.post(f"{url}/api/next", json={"model": "tiny", "ids": [1]}))
    assert (status, message) == (500, "the server failed (ZeroDivisionError): its terminal says where")
    printed = ""
    while "ZeroDivisionError: division by zero" not in printed:  # behind the answer
        printed += capfd.readouterr().err
        time.sleep(0.01)
