"""What a run brings along: context, config, store, streams, event loops."""

import asyncio
import operator
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig, RunnableGenerator, RunnableLambda
from langgraph.config import get_config, get_store, get_stream_writer
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime, get_runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from pydantic import BaseModel


class Log(TypedDict):
    log: Annotated[list[Any], operator.add]


def chain(*nodes, **schemas) -> StateGraph:
    builder = StateGraph(Log, **schemas)
    previous = START
    for index, node in enumerate(nodes):
        builder.add_node(f"node{index}", node)
        builder.add_edge(previous, f"node{index}")
        previous = f"node{index}"
    return builder


@dataclass
class Settings:
    user: str
    limit: int = 3


def read_settings(state, runtime: Runtime[Settings]):
    inside = get_runtime(Settings).context
    return {"log": [runtime.context.user, runtime.context.limit, inside is runtime.context]}


context_dataclass = chain(read_settings, context_schema=Settings).compile()


class Checked(BaseModel):
    user: str
    limit: int = 3


def read_model(state, runtime: Runtime[Checked]):
    return {"log": [type(runtime.context).__name__, runtime.context.limit * 2]}


context_model = chain(read_model, context_schema=Checked).compile()


class Plain(TypedDict):
    user: str


def read_plain(state, runtime: Runtime[Plain]):
    return {"log": [runtime.context]}


context_dict = chain(read_plain, context_schema=Plain).compile()
context_missing = chain(read_plain).compile()


def read_config(state, config: RunnableConfig):
    same = get_config()["configurable"].get("model")
    return {"log": [config["configurable"].get("model"), same, config.get("recursion_limit")]}


configured = chain(read_config).compile()
preset = chain(read_config).compile().with_config(configurable={"other": 1}, recursion_limit=17)


# The store that the graph was compiled with.
def remember(state, *, store: BaseStore):
    store.put(("users", "ada"), "likes", {"food": "pizza", "times": len(state["log"])})
    store.put(("users", "ada"), "hates", {"food": "liver"})
    return {"log": ["remembered"]}


def recall(state):
    store = get_store()
    found = sorted((item.key, item.value["food"]) for item in store.search(("users",)))
    missing = store.get(("users", "bob"), "likes")
    return {"log": [found, missing, store.list_namespaces()]}


stored = chain(remember, recall).compile(store=InMemoryStore())


async def remember_async(state, runtime: Runtime):
    await runtime.store.aput(("a",), "k", {"v": 1})
    item = await runtime.store.aget(("a",), "k")
    return {"log": [item.value, [found.key for found in await runtime.store.asearch(("a",))]]}


stored_async = chain(remember_async).compile(store=InMemoryStore())


# Streams: what is written to them is not part of the result.
def write_progress(state):
    writer = get_stream_writer()
    for percent in range(0, 101, 25):
        writer({"percent": percent})
    writer(b"anything at all")
    return {"log": ["written"]}


def write_by_runtime(state, runtime: Runtime):
    runtime.stream_writer("text")
    return {"log": [runtime.previous]}


streaming = chain(write_progress, write_by_runtime).compile()


async def count_down() -> AsyncIterator[int]:
    for number in (3, 2, 1):
        await asyncio.sleep(0)
        yield number


async def write_async(state, runtime: Runtime):
    collected = []
    async for number in count_down():
        runtime.stream_writer({"token": number})
        collected.append(number)
    return {"log": collected}


streaming_async = chain(write_async, lambda state: {"log": ["and sync"]}).compile()


def consume(state):
    """Streams another graph inside of a node, in several modes."""
    seen = []
    for mode, payload in streaming.stream({"log": []}, stream_mode=["custom", "updates"]):
        seen.append(mode if mode == "custom" else [mode, sorted(payload)])
    return {"log": seen}


consuming = chain(consume).compile()


async def consume_async(state):
    stream = streaming_async.astream({"log": []}, stream_mode="values")
    return {"log": [len(values["log"]) async for values in stream]}


async def consume_events(state):
    events = streaming_async.astream_events({"log": []}, version="v2")
    return {"log": sorted({event["event"] async for event in events})}


consuming_async = chain(consume_async, consume_events).compile()


# Event loops.
async def wait_for_others(state):
    async def work(number: int) -> int:
        await asyncio.sleep(0.001 * (3 - number))
        return number

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(number)) for number in range(3)]
    return {"log": [task.result() for task in tasks]}


def run_own_loop(state):
    """A sync node may start an event loop of its own."""

    async def work() -> str:
        await asyncio.sleep(0)
        return "own loop"

    return {"log": [asyncio.run(work())]}


asynchronous = chain(wait_for_others, wait_for_others).compile()
own_loop = chain(run_own_loop).compile()
_both = StateGraph(Log)
for _name in ("left", "right"):
    _both.add_node(_name, wait_for_others)
    _both.add_edge(START, _name)
_both.add_node("join", run_own_loop, defer=True)
_both.add_edge(["left", "right"], "join")
asynchronous_branches = _both.compile()


async def raise_async(state):
    await asyncio.sleep(0)
    raise PermissionError(13, "not allowed", "some/file")


raising_async = chain(wait_for_others, raise_async).compile()


async def cancel_itself(state):
    raise asyncio.CancelledError("gave up")


# Runnables as nodes.
def transform(chunks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for chunk in chunks:
        yield {"log": [len(chunk["log"])]}


composed = chain(
    RunnableLambda(lambda state: len(state["log"]))
    | RunnableLambda(lambda n: {"log": [n, "piped"]}),
    RunnableGenerator(transform),
).compile()


class Callable:
    """An object with a call method, and a bound method of it."""

    def __call__(self, state):
        return {"log": ["called"]}

    def method(self, state):
        return {"log": ["method"]}


callables = chain(Callable(), Callable().method).compile()


async def coroutine_call(state):
    return {"log": ["coroutine"]}


class AsyncCallable:
    async def __call__(self, state):
        return {"log": ["async call"]}


async_callables = chain(AsyncCallable(), coroutine_call).compile()


def nap(state):
    import time

    time.sleep(0.01)
    return {"log": ["napped"]}


both_ways = chain(RunnableLambda(nap, afunc=coroutine_call)).compile()
cancelling = chain(wait_for_others, cancel_itself).compile()
