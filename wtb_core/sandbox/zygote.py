"""A warm process with a project imported, which forks itself once per execution.

It is single-threaded and never runs the user's nodes. A project that leaves threads or open
sockets behind cannot be forked safely: then the zygote says so, in words for the user, and ends.
It ends with its control socket.
"""

import asyncio
import gc
import os
import random
import select
import socket
import sys
from operator import add
from typing import Annotated, Any, NoReturn, TypedDict

from langchain_core.callbacks import UsageMetadataCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langsmith.run_helpers import tracing_context

from wtb_core.sandbox import child, init
from wtb_core.sandbox.obstacles import find_fork_obstacle
from wtb_core.sandbox.project import LoadedProject
from wtb_core.sandbox.wire import Channel


class _State(TypedDict):
    steps: Annotated[list[str], add]


def warm_up() -> None:
    """Run a small graph of ours, both ways: the first run in a process fills caches."""

    def step(state: _State) -> dict[str, Any]:
        return {"steps": ["x"]}

    builder = StateGraph(_State)
    builder.add_node("first", step)
    builder.add_node("second", step)
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    builder.add_conditional_edges("second", lambda state: END, [END])
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


def serve(control_number: int) -> NoReturn:
    """Load, warm up, say whether forking is safe, then fork on each request."""
    init.become_subreaper()
    os.set_inheritable(control_number, False)
    control = socket.socket(fileno=control_number)
    channel = Channel(control)
    header, _ = channel.receive()
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
    _fork_on_request(control, project)


def _fork_on_request(control: socket.socket, project: LoadedProject) -> NoReturn:
    running: dict[int, int] = {}  # pidfd -> pid of an init
    helpers = init.find_children(os.getpid())  # processes that the project started at import
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for number, _ in poll.poll():
            if number == control.fileno():
                data, descriptors, _, _ = socket.recv_fds(control, 1, 2)
                if not data:
                    os._exit(0)  # the init above ends what is left
                handle, pid = _fork(control, running, descriptors, project)
                running[handle] = pid
                poll.register(handle, select.POLLIN)
            else:
                poll.unregister(number)
                os.close(number)
                _, status = os.waitpid(running.pop(number), 0)
                if status != 0:  # killed by user code, so its orphans came here
                    init.kill_descendants(spare=frozenset([*running.values(), *helpers]))


def _fork(
    control: socket.socket, running: dict[int, int], descriptors: list[int], project: LoadedProject
) -> tuple[int, int]:
    session, leash = descriptors
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    pid = os.fork()
    if pid == 0:
        control.close()
        for handle in running:
            os.close(handle)
        _serve_one(session, leash, project)
    os.close(session)
    os.close(leash)
    return os.pidfd_open(pid), pid


def _serve_one(session: int, leash: int, project: LoadedProject) -> NoReturn:
    def run() -> NoReturn:
        random.seed()
        child.main(socket.socket(fileno=session), project)

    try:
        os.setsid()
        init.supervise(socket.socket(fileno=leash), run)
    finally:
        os._exit(1)
