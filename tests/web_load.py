"""Load on gptmini serve: many clients at once, impatient, slow and hostile ones among them.

    python tests/web_load.py RUN [MINUTES]

starts a server for the run, asks it for that long (10 minutes unless given), and prints what came back and
the server's memory at the beginning and at the end. It exits with 1 where an answer was neither whole nor an
error, the server ended, or its memory grew by more than 5 % after the first fifth of the time.
"""

import asyncio
import collections
import contextlib
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx

CLIENTS = 64
BODY = 100 * 1000 * 1000  # bytes of a body that is too large


class Load:
    """The clients, and what came back to them."""

    def __init__(self, url, model, is_over, clients=CLIENTS):
        self.url, self.model, self.is_over, self.clients = url, model, is_over, clients
        self.counts = collections.Counter()
        self.wrong = []

    async def run(self):
        """Until `is_over(self)`."""
        kinds = [self.patient if number % 3 else self.impatient for number in range(self.clients)]
        await asyncio.gather(*(kind(number) for number, kind in enumerate(kinds)), self.slow(), self.huge())

    async def patient(self, number):
        """Asks, and reads the whole answer: a completion, a stream, or a look inside."""
        chance = random.Random(number)
        async with httpx.AsyncClient(base_url=self.url, timeout=600) as client:
            while not self.is_over(self):
                kind = chance.choice(("whole", "stream", "inspect", "tokenize"))
                try:
                    await getattr(self, kind)(client, chance.randrange(1, 60))
                except httpx.HTTPError as error:
                    self.note(False, f"{kind}: {type(error).__name__} {error}")

    async def whole(self, client, tokens):
        """A completion: as many tokens as were asked for, or the end of a text."""
        body = {"model": self.model, "prompt": "The ", "max_tokens": tokens, "logprobs": 1}
        answer = await client.post("/v1/completions", json=body)
        if await self.is_error(answer):
            return
        (choice,) = answer.json()["choices"]
        whole = len(choice["logprobs"]["tokens"]) == tokens or choice["finish_reason"] == "stop"
        self.note(whole, "whole", answer.text)

    async def stream(self, client, tokens):
        """The same in chunks, with its end."""
        body = {"model": self.model, "ids": [], "max_new_tokens": tokens}
        async with client.stream("POST", "/api/generate", json=body) as answer:
            if await self.is_error(answer):
                return
            lines = [line async for line in answer.aiter_lines() if line]
            self.note(lines[-1] == "data: [DONE]" and len(lines) > 1, "stream", str(lines)[-300:])

    async def inspect(self, client, tokens):
        """What each layer would say, for every token."""
        answer = await client.post("/api/inspect", json={"model": self.model, "ids": list(range(tokens))})
        if not await self.is_error(answer):
            self.note(len(answer.json()["lens"][0]) <= tokens, "inspect", answer.text[:300])

    async def tokenize(self, client, tokens):
        """The tokens of a text."""
        answer = await client.post("/api/tokenize", json={"model": self.model, "text": "The end. " * tokens})
        if not await self.is_error(answer):
            text = "".join(token["text"] for token in answer.json())
            self.note(text == "The end. " * tokens, "tokenize", answer.text[:300])

    async def impatient(self, number):
        """Asks for a long text and goes away after a moment."""
        chance = random.Random(number)
        body = {"model": self.model, "prompt": "The ", "max_tokens": 4096, "stream": bool(number % 2)}
        while not self.is_over(self):
            patience = httpx.Timeout(chance.uniform(0.05, 1.5), connect=60)
            with contextlib.suppress(httpx.TimeoutException):
                async with httpx.AsyncClient(base_url=self.url, timeout=patience) as client:
                    answer = await client.post("/v1/completions", json=body)
                    await self.is_error(answer)
            self.counts["broken off"] += 1

    async def slow(self):
        """Sends a byte a second: the server gives up."""
        host, port = self.url.removeprefix("http://").split(":")
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n"
        while not self.is_over(self):
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, int(port))
                for byte in head[: random.choice((30, len(head)))] + b"{" * 1000:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    if writer.is_closing() or reader.at_eof() or self.is_over(self):
                        break
                    await asyncio.sleep(1)
                writer.close()
            self.counts["slow ones"] += 1

    async def huge(self):
        """Sends 100 MB."""
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as client:
            while not self.is_over(self):
                try:
                    answer = await client.post("/v1/completions", content=b" " * BODY)
                    self.note(answer.status_code == 413, "413", answer.text[:300])
                except httpx.TransportError:  # closed while it was sent
                    self.counts["413, or closed"] += 1
                await asyncio.sleep(1)

    async def is_error(self, answer):
        """Whether the answer is an error; it must be one of a busy server."""
        if answer.status_code == 200:
            return False
        await answer.aread()
        with contextlib.suppress(json.JSONDecodeError):
            self.note(answer.status_code == 503 and "error" in answer.json(), "503", answer.text[:300])
            await asyncio.sleep(0.2)
            return True
        self.note(False, f"{answer.status_code}: {answer.text[:300]}")
        return True

    def note(self, right, name, found=""):
        """Count an answer, or keep what is wrong with it."""
        self.counts[name] += right
        if not right:
            self.wrong.append(f"{name}: {found}")


def resident_bytes(pid):
    """The memory of a process, on Linux."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


async def measure(run, seconds):
    """Start a server, load it; returns whether all is well."""
    command = [sys.executable, "-m", "gptmini", "serve", run, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = await asyncio.to_thread(server.stdout.readline)
        end = time.monotonic() + seconds
        load = Load(re.search(r"http://[^/]+", line)[0], Path(run).name, lambda load: time.monotonic() > end)
        running = asyncio.ensure_future(load.run())
        await asyncio.sleep(seconds / 5)
        before = resident_bytes(server.pid)
        await running
        await asyncio.sleep(2)
        after, ended = resident_bytes(server.pid), server.poll()
    finally:
        server.kill()
        server.wait()
    print(", ".join(f"{name} {count:,}" for name, count in sorted(load.counts.items())))
    print(f"memory {before / 1e6:,.1f} MB after a fifth of the time, {after / 1e6:,.1f} MB at the end")
    print(f"{len(load.wrong)} answers neither whole nor an error", *load.wrong[:5], sep="\n  ")
    return not load.wrong and ended is None and after <= 1.05 * before


if __name__ == "__main__":
    minutes = float(sys.argv[2]) if len(sys.argv) > 2 else 10
    sys.exit(not asyncio.run(measure(sys.argv[1], 60 * minutes)))
