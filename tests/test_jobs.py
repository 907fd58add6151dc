"""Jobs: turns of one model, item by item of several, and an end to what nobody awaits."""

import asyncio

import pytest

from gptmini.web import jobs
from gptmini.web.jobs import BusyError, Jobs


def items(log, name, count=3):
    """Work of some items, which says what was computed."""

    def work():
        try:
            for number in range(count):
                log.append(f"{name}{number}")
                yield number
        finally:
            log.append(f"{name} closed")

    return work


async def collect(stream):
    return [item async for item in stream]


def test_jobs_of_one_model_come_one_after_another_in_their_order():
    async def main():
        queue, log = Jobs(), []
        asked = [collect(queue.stream("m", items(log, name))) for name in "abc"]
        assert await asyncio.gather(*asked) == [[0, 1, 2]] * 3
        return log

    assert asyncio.run(main()) == [f"{a}{b}" for a in "abc" for b in ("0", "1", "2", " closed")]


def test_two_models_advance_together():
    async def main():
        queue, log = Jobs(), []
        long = asyncio.ensure_future(collect(queue.stream("long", items(log, "a", 100_000))))
        await queue.run("short", lambda: None)  # does not wait for the end of the other
        return long.done()

    assert asyncio.run(main()) is False


def test_a_job_that_nobody_awaits_ends_and_gives_its_place_up(monkeypatch):
    monkeypatch.setattr(jobs, "MAX_WAITING", 2)

    async def main():
        queue, log = Jobs(), []
        first = queue.stream("m", items(log, "a", 10**9))
        assert await anext(first) == 0
        second = asyncio.ensure_future(collect(queue.stream("m", items(log, "b"))))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="m has 2 requests waiting"):
            await queue.run("m", lambda: None)
        second.cancel()  # it waits, and leaves at once
        await asyncio.wait([second])
        third = asyncio.ensure_future(queue.run("m", lambda: "third"))
        await asyncio.sleep(0)
        await first.aclose()
        assert await third == "third"
        return log

    log = asyncio.run(main())
    assert log[-1] == "a closed"
    assert not any(line.startswith("b") for line in log)


def test_what_the_work_raises_is_raised_and_the_next_job_runs():
    async def main():
        queue = Jobs()
        with pytest.raises(ZeroDivisionError):
            await queue.run("m", lambda: 1 / 0)
        return await queue.run("m", lambda: "next")

    assert asyncio.run(main()) == "next"
