"""Batches keep to their budget, requests stay whole, and work that nobody waits for is dropped."""

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import batcher, front
from service.batcher import Batcher, Inferred
from service.call import Lane, current, read_call, working_for
from service.cost import Cost
from service.errors import DeadlineError, EngineFailedError, OverloadedError, TooLargeError
from service.front import AT_ONCE
from service.metrics import Metrics
from service.models import Model, Models
from service.windows import Window
from tests.service import fake


def window(length: int, first: int = 10) -> Window:
    return Window(np.arange(first, first + length, dtype=np.int32), np.zeros(length, np.int32), 1, 0, length - 2)


class Bench:
    """A batcher with small limits in front of formulas."""

    def __init__(self, folder: Path, max_batch_tokens: int = 20, max_queue_tokens: int = 100) -> None:
        self.ner, self.ner_engine = fake.model(folder, "token-classification")
        self.cls, self.cls_engine = fake.model(folder, "text-classification")
        self.metrics = Metrics(Models({}, {}), ())
        self.batcher = Batcher(max_batch_tokens, max_queue_tokens, self.metrics)
        self.batcher.start()

    async def busy(self) -> "asyncio.Task[Inferred]":
        """Put the engine to work on a request of 10 tokens until `release`."""
        self.ner_engine.gate.clear()
        first = self.ask(self.ner, 10)
        await fake.wait_until(self.ner_engine.started.is_set)
        return first

    def release(self) -> None:
        self.ner_engine.gate.set()

    def ask(self, model: Model, *lengths: int) -> "asyncio.Task[Inferred]":
        return asyncio.ensure_future(self.batcher.infer(model, [window(n, 10 + n) for n in lengths]))


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_each_window_gets_its_own_logits_whatever_its_batch(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench(tmp_path)
        first = await bench.busy()
        asked = [bench.ask(bench.ner, 5, 7), bench.ask(bench.cls, 6), bench.ask(bench.ner, 19, 4, 4)]
        await asyncio.sleep(0)
        bench.release()
        for task, lengths in zip(asked, ([5, 7], [6], [19, 4, 4]), strict=True):
            for values, length in zip((await task).logits, lengths, strict=True):
                ids = window(length, 10 + length).ids
                if task is asked[1]:
                    assert np.allclose(values, np.sin(ids[:3].sum() * np.arange(1, 3)))
                else:
                    assert np.allclose(values, np.sin(ids[:, None] * np.arange(1, 8)), atol=1e-5)
        await first
        assert bench.ner_engine.batches == [[10], [5, 7], [19], [4, 4]]
        assert bench.cls_engine.batches == [[6]]
        assert bench.batcher.waiting_tokens == 0
        await bench.batcher.close()

    run(story())


def test_the_predicted_wait_holds_the_event_loops_part(tmp_path: Path) -> None:
    """Short texts are refused for it while the engine's queue is empty: autoscalers must see that."""

    def shown(bench: Bench) -> float:
        page = bench.metrics.page().decode().splitlines()
        (line,) = (line for line in page if line.startswith("sparselane_predicted_wait_seconds "))
        return float(line.split()[1])

    async def story() -> None:
        bench = Bench(tmp_path)
        assert shown(bench) == 0
        with ExitStack() as requests:
            for _ in range(2 * AT_ONCE):
                requests.enter_context(bench.batcher.front.here())
            assert shown(bench) == pytest.approx(bench.batcher.front.seconds_at_the_door) and shown(bench) > 0
        await bench.batcher.close()

    run(story())


def test_a_window_over_the_budget_goes_alone(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench(tmp_path)
        assert len((await bench.ask(bench.ner, 30, 3)).logits) == 2
        assert bench.ner_engine.batches == [[30], [3]]
        await bench.batcher.close()

    run(story())


def test_nothing_to_infer_waits_for_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench(tmp_path)
        await bench.busy()
        assert await bench.batcher.infer(bench.ner, []) == Inferred([], 0.0, 0.0)
        bench.release()
        await bench.batcher.close()

    run(story())


def test_a_request_is_admitted_whole_or_refused_whole(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench(tmp_path)
        first = await bench.busy()
        fits = bench.ask(bench.ner, 45, 45)
        await asyncio.sleep(0)
        assert bench.batcher.waiting_tokens == 100
        with pytest.raises(OverloadedError) as raised:
            await bench.ask(bench.ner, 1)
        assert raised.value.retry_after is not None and raised.value.retry_after >= 1
        with pytest.raises(TooLargeError, match="101 tokens are more than the 100"):
            await bench.ask(bench.ner, 50, 51)
        assert bench.batcher.waiting_tokens == 100
        bench.release()
        await asyncio.gather(first, fits)
        assert len((await bench.ask(bench.ner, 50, 50)).logits) == 2
        await bench.batcher.close()

    run(story())


def test_what_nobody_waits_for_is_never_run(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench(tmp_path)
        first = await bench.busy()
        gone, stays = bench.ask(bench.ner, 11, 12), bench.ask(bench.ner, 13)
        await asyncio.sleep(0)
        assert bench.batcher.waiting_tokens == 46
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert bench.batcher.waiting_tokens == 23
        bench.release()
        await asyncio.gather(first, stays)
        assert bench.ner_engine.batches == [[10], [13]]
        await bench.batcher.close()

    run(story())


def test_a_client_that_leaves_during_its_first_batch_saves_the_rest(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench(tmp_path)
        bench.ner_engine.gate.clear()
        gone = bench.ask(bench.ner, 15, 15, 15)
        await fake.wait_until(bench.ner_engine.started.is_set)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        bench.release()
        await bench.batcher.close()
        assert bench.ner_engine.batches == [[15]]
        assert bench.batcher.waiting_tokens == 0

    run(story())


def test_a_failing_engine_fails_its_batch_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        bench = Bench(tmp_path)
        bench.ner_engine.error = ValueError("secret text")
        failing = [bench.ask(bench.ner, 15, 15), bench.ask(bench.cls, 5)]
        with pytest.raises(EngineFailedError, match=r"the engine failed: ValueError$"):
            await failing[0]
        assert len((await failing[1]).logits) == 1
        assert bench.ner_engine.batches == [[15]]
        bench.ner_engine.error = None
        assert len((await bench.ask(bench.ner, 5)).logits) == 1
        assert bench.batcher.waiting_tokens == 0
        await bench.batcher.close()

    run(story())
    assert "secret text" in caplog.text


def test_close_answers_what_was_admitted(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench(tmp_path)
        first = await bench.busy()
        others = [bench.ask(bench.ner, 9) for _ in range(8)]
        closing = asyncio.ensure_future(bench.batcher.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        bench.release()
        await closing
        assert all(len(task.result().logits) == 1 for task in (first, *others))

    run(story())


def test_the_time_to_retry_follows_the_speed_that_was_measured(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench(tmp_path, max_batch_tokens=1000, max_queue_tokens=100_000)
        bench.ner = replace(bench.ner, cost=Cost(0.0, 1e-3, 0.0))  # 1000 tokens a second
        first = await bench.busy()
        waiting = bench.ask(bench.ner, *[1000] * 30)
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError) as raised:
            await bench.ask(bench.ner, *[1000] * 90)
        assert raised.value.retry_after == 31
        waiting.cancel()
        bench.release()
        await asyncio.gather(first, waiting, return_exceptions=True)
        await bench.batcher.close()

    run(story())


def test_who_would_be_late_is_refused_and_who_is_late_is_dropped_where_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    for module in (batcher, front):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])

    async def story() -> None:
        bench = Bench(tmp_path, max_batch_tokens=1000, max_queue_tokens=100_000)
        bench.ner = replace(bench.ner, cost=Cost(0.0, 1e-3, 0.0))
        first = await bench.busy()
        others = [bench.ask(bench.ner, 10) for _ in range(300)]
        await asyncio.sleep(0)
        now[0] += 0.3  # much more than the 4 x 10 ms for which a newcomer could overtake them
        with working_for(read_call({"x-request-timeout-ms": "3000"}, 1, now[0])):
            with pytest.raises(OverloadedError, match=r"may need 3\.\d s, and has 3\.0 s"):
                bench.batcher.check_wait(current(), 0.0)
            with pytest.raises(OverloadedError, match=r"may need [45]\.\d s"):
                await bench.ask(bench.ner, 5)
            with pytest.raises(OverloadedError, match=r"may need 5\.\d s"), bench.batcher.reading(bench.ner, 6000):
                pass
        with working_for(read_call({"x-request-timeout-ms": "9000"}, 1, now[0])):
            bench.batcher.check_wait(current(), 0.0)
            late = bench.ask(bench.ner, 5)
        await asyncio.sleep(0)
        for job in bench.batcher._schedule.lines[Lane.INTERACTIVE].jobs:
            job.deadline = 0.0  # as if the engine had been held up from outside
        bench.release()
        outcomes = await asyncio.gather(first, late, *others, return_exceptions=True)
        assert sum(isinstance(outcome, DeadlineError) for outcome in outcomes) == 300
        assert sum(isinstance(outcome, Inferred) for outcome in outcomes) == 2, "the first, and the last: nobody waits"
        assert bench.batcher.waiting_tokens == 0
        await bench.batcher.close()

    run(story())


def test_texts_that_are_read_take_room_in_the_queue(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench(tmp_path)
        first = await bench.busy()
        with bench.batcher.reading(bench.ner, 300):
            assert bench.batcher.waiting_tokens == 10 + 51
            with pytest.raises(OverloadedError), bench.batcher.reading(bench.ner, 300):
                pass
        assert bench.batcher.waiting_tokens == 10
        bench.release()
        await first
        with bench.batcher.reading(bench.ner, 599):  # the whole queue
            assert bench.batcher.waiting_tokens == 100
        await bench.batcher.close()

    run(story())


def test_what_seems_too_large_is_read_under_load_too_but_alone_and_takes_no_room(tmp_path: Path) -> None:
    async def story() -> None:
        bench = Bench(tmp_path)
        first = await bench.busy()
        for _ in range(2):
            with bench.batcher.reading(bench.ner, 600):
                assert bench.batcher.waiting_tokens == 10
                with pytest.raises(OverloadedError, match="as large as this"), bench.batcher.reading(bench.ner, 10**9):
                    pass
                with bench.batcher.reading(bench.ner, 300):  # others have the whole queue
                    assert bench.batcher.waiting_tokens == 10 + 51
        bench.release()
        await first
        await bench.batcher.close()

    run(story())
