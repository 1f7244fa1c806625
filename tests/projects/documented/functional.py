"""The functional API: entrypoints and tasks."""

import asyncio
import time
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.cache.memory import InMemoryCache
from langgraph.channels import BinaryOperatorAggregate, EphemeralValue, LastValue
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph
from langgraph.pregel import NodeBuilder, Pregel
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, RetryPolicy, StreamWriter, interrupt


@task
def square(x: int) -> int:
    return x * x


@entrypoint()
def parallel(numbers: list[int]) -> dict[str, Any]:
    futures = [square(number) for number in numbers]
    return {"squares": [future.result() for future in futures], "order": list(reversed(numbers))}


@task
async def square_async(x: int) -> int:
    await asyncio.sleep(0.001 * x)
    return x * x


@entrypoint()
async def gathered(numbers: list[int]) -> list[int]:
    return await asyncio.gather(*(square_async(number) for number in numbers))


@entrypoint()
def final(number: int, *, previous: Any = None) -> entrypoint.final[str, int]:
    return entrypoint.final(value=f"{number} after {previous}", save=number)


@entrypoint()
def nothing(given: Any) -> None:
    assert given is not None


_tries: list[int] = []


@task(retry_policy=RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False))
def flaky(x: int) -> str:
    _tries.append(x)
    if len(_tries) < 3:
        raise ConnectionError("not yet")
    return f"{x} at try {len(_tries)}"


@entrypoint()
def retried(x: int) -> str:
    return flaky(x).result()


_computed: list[int] = []


@task(cache_policy=CachePolicy(ttl=60))
def compute(x: int) -> int:
    _computed.append(x)
    return len(_computed)


@entrypoint(cache=InMemoryCache())
def cached(x: int) -> list[int]:
    """LangGraph stores a result beside the run: what asks at once may find nothing yet."""
    found: list[int] = []
    for given in (x, x, x + 1, x):
        found.append(compute(given).result())
        time.sleep(0.2)
    return found


_ran: list[str] = []


@task
def prepare(text: str) -> str:
    _ran.append(text)
    return f"{text}, prepared {len(_ran)} time"


@task
def ask(draft: str) -> str:
    return interrupt({"draft": draft, "question": "good?"})


@entrypoint()
def asking(text: str) -> dict[str, Any]:
    """A task that has ended is not run again after an answer."""
    draft = prepare(text).result()
    return {"draft": draft, "in_task": ask(draft).result(), "in_entrypoint": interrupt("publish?")}


@task
def fail(x: int) -> int:
    raise ZeroDivisionError(f"by {x}")


@entrypoint()
def raising(x: int) -> int:
    return square(x).result() + fail(x).result()


@entrypoint()
def forgiving(x: int) -> str:
    try:
        return f"got {fail(x).result()}"
    except ZeroDivisionError as error:
        return f"caught {error}"


@entrypoint(store=InMemoryStore(), context_schema=dict)
def injected(
    x: int,
    *,
    store: BaseStore,
    writer: StreamWriter,
    config: RunnableConfig,
    runtime: Runtime[dict[str, Any]],
) -> dict[str, Any]:
    writer({"progress": x})
    store.put(("numbers",), "x", {"value": x})
    found = store.get(("numbers",), "x")
    return {
        "stored": found.value if found else None,
        "configured": config["configurable"].get("unit"),
        "context": runtime.context,
    }


# Each calls the other.
_builder = StateGraph(dict)
_builder.add_node("double", lambda state: {"x": state["x"] * 2})
_builder.add_edge(START, "double")
_graph = _builder.compile()


@entrypoint()
def calls_graph(x: int) -> dict[str, Any]:
    return {"graph": _graph.invoke({"x": x}), "entrypoint": parallel.invoke([x])}


# The layer below: channels and nodes.
pregel = Pregel(
    nodes={
        "one": NodeBuilder().subscribe_only("a").do(lambda x: x + x).write_to("b", "c"),
        "two": NodeBuilder().subscribe_only("b").do(lambda x: x * 3).write_to("c"),
    },
    channels={
        "a": EphemeralValue(str),
        "b": LastValue(str),
        "c": BinaryOperatorAggregate(str, lambda left, right: f"{left}|{right}"),
    },
    input_channels=["a"],
    output_channels=["b", "c"],
)
