"""A key's tokens: never more than its quota, given back where there was no answer, and told in the headers."""

import asyncio
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import pytest
from huggingface_hub.utils import parse_ratelimit_headers
from hypothesis import given
from hypothesis import strategies as st

from service import pipeline, quotas
from service.errors import OverloadedError, QuotaExceededError, TooLargeError
from service.keys import new_key
from service.quotas import WINDOW_SECONDS, Bucket, charged
from tests.service import fake

CLS = "text-classification"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 1000), st.lists(st.tuples(st.integers(0, 100), st.integers(1, 1000)), max_size=60))
def test_no_stretch_of_time_holds_more_than_a_bucket_and_what_it_gained(
    quota: int, asked: list[tuple[int, int]]
) -> None:
    clock = Clock()
    bucket = Bucket(quota, clock)
    granted: list[tuple[float, int]] = []
    for seconds, tokens in asked:
        clock.now += seconds
        try:
            bucket.take(tokens)
        except TooLargeError:
            assert tokens > quota
        except QuotaExceededError as error:
            # What it says is enough, and a second less is not.
            assert error.retry_after is not None
            clock.now += error.retry_after - 1
            with pytest.raises(QuotaExceededError):
                bucket.take(tokens)
            clock.now += 1
            bucket.take(tokens)
            granted.append((clock.now, tokens))
        else:
            granted.append((clock.now, tokens))
    for first in range(len(granted)):
        total = 0
        for at, tokens in granted[first:]:
            total += tokens
            assert total <= quota * (1 + (at - granted[first][0]) / WINDOW_SECONDS) + 1e-6


def test_the_headers_say_what_is_left_and_when_it_is_full() -> None:
    clock = Clock()
    bucket = Bucket(600, clock)
    bucket.take(300)
    assert bucket.headers() == {"ratelimit-policy": '"default";q=600;w=60', "ratelimit": '"default";r=300;t=30'}
    clock.now += 15
    read = parse_ratelimit_headers(bucket.headers())
    assert read is not None
    assert (read.remaining, read.reset_in_seconds, read.limit, read.window_seconds) == (450, 15, 600, 60)
    assert "t=7" in bucket.headers(7)["ratelimit"]
    clock.now += 1000
    assert "r=600;t=0" in bucket.headers()["ratelimit"]


def test_who_gets_no_answer_pays_nothing_but_who_leaves_does() -> None:
    bucket = Bucket(100, Clock())
    with charged(bucket, 30):
        pass
    with pytest.raises(OverloadedError), charged(bucket, 50):
        raise OverloadedError("full")
    assert "r=70" in bucket.headers()["ratelimit"]
    with pytest.raises(asyncio.CancelledError), charged(bucket, 20):
        raise asyncio.CancelledError
    assert "r=50" in bucket.headers()["ratelimit"]
    with pytest.raises(asyncio.CancelledError), charged(bucket, 20, perf_counter() + 100):
        raise asyncio.CancelledError
    assert "r=30" in bucket.headers()["ratelimit"]
    with charged(None, 10**9):
        pass


def talk(folder: Path, quota: int, conversation: Any, **overrides: Any) -> None:
    """Run `conversation` with a client whose key has this quota."""
    secret, entry = new_key("alice", tokens_per_minute=quota)
    (folder / "keys.toml").write_text(entry)
    model, formula = fake.model(folder, CLS)

    async def keyed(http: httpx.AsyncClient) -> None:
        http.headers["authorization"] = f"Bearer {secret}"
        await conversation(http, formula)

    fake.talk([model], keyed, keys_file=folder / "keys.toml", **overrides)


async def ask(http: httpx.AsyncClient, words: int) -> httpx.Response:
    return await http.post(f"/v1/{CLS}", json={"inputs": "a " * words})


def test_what_is_too_late_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(http: httpx.AsyncClient, formula: fake.Formula) -> None:
        formula.gate.clear()
        late = asyncio.ensure_future(
            http.post(f"/v1/{CLS}", json={"inputs": "a " * 16}, headers={"x-request-timeout-ms": "300000"})
        )
        await fake.wait_until(formula.started.is_set)
        with monkeypatch.context() as patch:
            patch.setattr(quotas, "perf_counter", lambda: perf_counter() + 400)
            await fake.jump(400)
            assert (await late).status_code == 504
        formula.gate.set()
        assert (await ask(http, 16)).status_code == 200, "the quota is enough for one"

    talk(tmp_path, 20, conversation)


def test_a_used_up_quota_is_a_429_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(http: httpx.AsyncClient, formula: fake.Formula) -> None:
        first = await ask(http, 16)
        assert (first.status_code, first.headers["ratelimit-policy"]) == (200, '"default";q=20;w=60')
        assert first.headers["ratelimit"].startswith('"default";r=2;t=')
        refused = await ask(http, 16)
        assert (refused.status_code, refused.json()["title"]) == (429, "Quota exceeded")
        wait = int(refused.headers["retry-after"])
        assert 1 <= wait <= 60
        assert refused.headers["ratelimit"] == f'"default";r=2;t={wait}'
        never = await ask(http, 30)
        assert (never.status_code, never.json()["errors"][0]["limit"]) == (413, "20")
        assert len(formula.batches) == 1
        page = (await http.get("/metrics")).text
        assert 'sparselane_requests_total{model="text",outcome="quota",task="text-classification"} 1.0' in page
        assert "ratelimit" not in (await http.get("/healthz")).headers

    talk(tmp_path, 20, conversation)

    def never(*_: object) -> None:
        raise AssertionError("a text was tokenized for nothing")

    async def empty(http: httpx.AsyncClient, _: fake.Formula) -> None:
        assert (await ask(http, 18)).status_code == 200
        monkeypatch.setattr(pipeline, "encode_all", never)
        assert (await ask(http, 18)).status_code == 429

    talk(tmp_path, 20, empty)


def test_what_the_queue_refuses_is_given_back(tmp_path: Path) -> None:
    async def conversation(http: httpx.AsyncClient, formula: fake.Formula) -> None:
        formula.gate.clear()
        # 20 words are one window of 22 tokens.
        waiting = [asyncio.ensure_future(ask(http, 20)) for _ in range(4)]

        async def queued() -> bool:
            return "sparselane_queue_tokens 88.0" in (await http.get("/metrics")).text

        async with asyncio.timeout(30):
            while not await queued():
                await asyncio.sleep(0.001)
        for _ in range(5):
            refused = await ask(http, 20)
            assert refused.status_code == 503
            assert json.loads(refused.text)["title"] == "Overloaded"
        formula.gate.set()
        assert [(await one).status_code for one in waiting] == [200] * 4
        left = int(refused.headers["ratelimit"].partition("r=")[2].partition(";")[0])
        assert 900 - 88 <= left <= 900

    talk(tmp_path, 900, conversation, max_queue_tokens=100)
