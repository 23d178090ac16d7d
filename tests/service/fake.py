"""A model whose encoder is a formula, and a client for an app that serves it: the whole stack without weights."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from service.app import create_app
from service.models import Embeddings, Model, Models
from service.settings import Settings, load_settings
from service.windows import Floats, Ints, TextTokenizer, Windows
from tests.random_artifact import LABELS, tokenizer


class Formula:
    """Logit c of a token is sin((c + 1) * its id); of a text, of its first three ids. Waits while `gate` is closed."""

    def __init__(self, labels: int, rows_are_tokens: bool) -> None:
        self.labels = labels
        self.rows_are_tokens = rows_are_tokens
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.batches: list[list[int]] = []
        self.error: Exception | None = None

    def __call__(self, input_ids: Ints, lengths: Ints, type_ids: Ints | None) -> Floats:
        assert input_ids.dtype == lengths.dtype == np.int32
        assert type_ids is None or type_ids.shape == input_ids.shape
        assert lengths.sum() == len(input_ids)
        self.batches.append(lengths.tolist())
        self.started.set()
        assert self.gate.wait(timeout=30)
        if self.error:
            raise self.error
        ids = input_ids
        if not self.rows_are_tokens:
            starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            ids = np.array([input_ids[start : start + 3].sum() for start in starts])
        return np.sin(ids[:, None] * (np.arange(self.labels) + 1)).astype(np.float32)


def text_tokenizer(folder: Path) -> TextTokenizer:
    path = folder / "tokenizer.json"
    made = tokenizer()
    made.save(str(path))
    return TextTokenizer(path, made.get_vocab_size())


def model(
    folder: Path, task: str, *, name: str | None = None, window: int = 32, stride: int = 8
) -> tuple[Model, Formula]:
    labels = LABELS[task]
    forward = Formula(len(labels), rows_are_tokens=task != "text-classification")
    windows = Windows(text_tokenizer(folder), window, stride)
    longest = 10 if task == "question-answering" else None
    made = Model(name or task.split("-")[0], task, tuple(labels), windows, longest, True, forward, {})
    return replace(made, embeddings=Embeddings(tokenizer().get_vocab_size(), 64, 2)), forward


def settings(**overrides: Any) -> Settings:
    return load_settings({}, **overrides)


@asynccontextmanager
async def client(models: Models, limits: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(limits, models)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as http,
    ):
        http.app = app  # type: ignore[attr-defined]
        yield http


def talk(
    models: list[Model], conversation: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]], **overrides: Any
) -> Any:
    """Run `conversation` with a client of an app that serves `models`; return what it returns."""

    async def run() -> Any:
        async with client(Models({m.name: m for m in models}, {}), settings(**overrides)) as http:
            return await conversation(http)

    return asyncio.run(run())


async def jump(seconds: float) -> None:
    """Set the event loop's clock forward: what was to happen meanwhile happens now, however fast the machine is.

    It is the clock of deadlines (asyncio.timeout) and of idle connections; nobody sleeps.
    """
    loop = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + seconds  # type: ignore[method-assign]
    for _ in range(20):  # turns: the timers, whoever they woke, what those began
        await asyncio.sleep(0)


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)
