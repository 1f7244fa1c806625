"""A warm process with a project imported, which forks itself once per execution.

It is single-threaded and never runs the user's nodes. A project that leaves threads or open
sockets behind cannot be forked safely: then the zygote says so, in words for the user, and ends.
It ends with its control socket.
"""

import asyncio
import gc
import os
import socket
import sys
from operator import add
from typing import Annotated, Any, NoReturn, TypedDict

from langchain_core.callbacks import UsageMetadataCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langsmith.run_helpers import tracing_context

from wtb_core.sandbox import child
from wtb_core.sandbox.forking import fork_on_request
from wtb_core.sandbox.obstacles import find_fork_obstacle
from wtb_core.sandbox.project import LoadedProject
from wtb_core.sandbox.root import find_readable
from wtb_core.sandbox.wire import Channel


class _State(TypedDict):
    steps: Annotated[list[str], add]


def warm_up() -> None:
    """Run a small graph of ours, both ways: the first run in a process fills caches."""

    def step(state: _State) -> dict[str, Any]:  # noqa: ARG001 - langgraph goes by the name
        return {"steps": ["x"]}

    builder = StateGraph(_State)
    builder.add_node("first", step)
    builder.add_node("second", step)
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    builder.add_conditional_edges("second", lambda _: END, [END])
    graph = builder.compile(checkpointer=InMemorySaver(serde=child.SERDE))
    with tracing_context(enabled=False):
        for thread_id, run in (("sync", _run_sync), ("async", _run_async)):
            config = {
                "configurable": {"thread_id": thread_id},
                "callbacks": [UsageMetadataCallbackHandler()],
            }
            run(graph, config)


def _run_sync(graph: Any, config: Any) -> None:
    for _ in graph.stream({"steps": []}, config, stream_mode=child.STREAM_MODES, durability="sync"):
        pass


def _run_async(graph: Any, config: Any) -> None:
    async def run() -> None:
        async for _ in graph.astream(
            {"steps": []}, config, stream_mode=child.STREAM_MODES, durability="sync"
        ):
            pass

    asyncio.run(run())


def serve(control: socket.socket) -> NoReturn:
    """Load, warm up, say whether forking is safe, then fork on each request."""
    channel = Channel(control)
    header, _ = channel.receive()
    find_readable()
    project = LoadedProject(header["setup"])
    warm_up()
    obstacle = find_fork_obstacle(frozenset({control.fileno()}))
    if obstacle is None:
        gc.collect()
        gc.freeze()
    sys.stdout.flush()
    sys.stderr.flush()
    channel.send({"obstacle": obstacle})
    if obstacle is not None:
        os._exit(0)

    def run(session: int) -> NoReturn:
        child.main(socket.socket(fileno=session), project)

    fork_on_request(control, run)
