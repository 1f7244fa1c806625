"""Runs a graph to its end as `invoke` does, and tells which nodes ran.

The loop is that of `Pregel.invoke` (langgraph/pregel/main.py) over `stream`: the result is the
last `values`, and an `__interrupt__` among the `updates` says that the graph waits. `tasks` adds
the node runs. Answers are used in order, one per interrupt; a static breakpoint uses one too.

A fork finds the checkpoint it starts from as the latest of its thread: a change of state is applied
to it, and the graph goes on without input. The first call names that checkpoint: LangGraph then
runs subgraphs anew from what they had stored before it. Without the name, a subgraph that keeps its
state between calls would be resumed, and hand back its last answer for a new input.

An attempt that goes on for a lost one does the same without a change, and ends as the lost one
would have ended: answers that were used are not used again, a breakpoint at the checkpoint takes
one, and the supersteps that were made count against the recursion limit.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, Interrupt, StateSnapshot

from wtb_core.checkpoints import Session
from wtb_core.errors import InvalidOutput
from wtb_core.graphs import needs_asyncio
from wtb_core.sandbox import faults
from wtb_core.sandbox.progress import Progress, StartedLimit
from wtb_core.sandbox.rendering import render

STREAM_MODES = ["values", "updates", "tasks"]

_INTERRUPT = "__interrupt__"
_ROOT = "__root__"
_TASK_NOTE = re.compile(r"During task with name '.*' and id '(.+)'", re.DOTALL)
_UNSTARTED_NOTE = re.compile(r"Before task with name '(.*)' and path '.+'", re.DOTALL)
_MAX_SHOWN_CHARS = 2000


class Unanswered(Exception):
    """The graph waits for an answer that the case does not have."""

    def __init__(self, reason: str, node: str | None) -> None:
        super().__init__(reason, node)
        self.reason = reason
        self.node = node


class StateRefused(Exception):
    """The state of a fork cannot be applied; its cause, where it has one, is user code's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NodeRecorder:
    """Posts each node's start and end, and finds the node that failed.

    A superstep starts when a task starts while none is running: LangGraph announces all tasks of a
    superstep before it runs the first.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._start = time.monotonic()
        self._superstep = 0
        self._count = 0
        self._running: dict[str, tuple[int, str]] = {}
        self._failed: dict[str, str] = {}

    def take(self, task: dict[str, Any]) -> None:
        """Take one payload of the stream mode `tasks`."""
        if "result" not in task:
            if not self._running:
                self._superstep += 1
            self._running[task["id"]] = (self._count, task["name"])
            self._post("node_started", self._count, name=task["name"], superstep=self._superstep)
            self._count += 1
        elif task["id"] in self._running:
            self._end(task["id"], task.get("error"))

    def fail(self, error: BaseException) -> str | None:
        """The node that `error` came out of, None when it is not known.

        LangGraph notes the tasks on the exception, the innermost first; whether it also announces
        a task's end depends on how many tasks run. A task whose input the state's schema refuses
        has not started, and those before it have ended well.
        """
        notes = [str(note) for note in getattr(error, "__notes__", ())]
        during = [match[1] for match in map(_TASK_NOTE.fullmatch, notes) if match]
        before = [match[1] for match in map(_UNSTARTED_NOTE.fullmatch, notes) if match]
        known = [task_id for task_id in during if task_id in {*self._running, *self._failed}]
        if not known and before:
            for task_id in list(self._running):
                self._end(task_id, None)
            return before[-1]
        if not known and len(self._running) == 1:
            known = list(self._running)
        for task_id in known:
            if task_id in self._running:
                self._end(task_id, error)
        return next((self._failed[task_id] for task_id in known), None)

    def _end(self, task_id: str, error: object) -> None:
        index, name = self._running.pop(task_id)
        if error is not None:
            self._failed[task_id] = name
        self._post("node_ended", index, error=None if error is None else _summary(error))

    def _post(self, operation: str, index: int, **facts: Any) -> None:
        at_ms = round((time.monotonic() - self._start) * 1000)
        self._session.post({"op": operation, "index": index, "at_ms": at_ms, **facts})


class _Turn:
    """What one call of `stream` gave.

    A call that goes on begins with the values at its checkpoint, whether any were written or not.
    """

    def __init__(self, nodes: NodeRecorder, *, has_values: bool = True) -> None:
        self._nodes = nodes
        self._has_values = has_values
        self.latest: Any = None
        self.waits = False
        self.interrupts: list[Interrupt[Any]] = []

    def take(self, chunk: Any) -> None:
        mode, payload = chunk[-2:]
        if mode == "values":
            self.latest = payload if self._has_values else None
            self._has_values = True
        elif mode == "tasks":
            self._nodes.take(payload)
        elif isinstance(payload, dict) and _INTERRUPT in payload:
            self.waits = True
            self.interrupts += payload[_INTERRUPT]


class _Start(NamedTuple):
    """Where the first call of `stream` begins, and whether a value was written there already."""

    place: RunnableConfig
    has_values: bool = True


class _Next(NamedTuple):
    """The input of the next call of `stream`; `ended` when there is none."""

    ended: bool
    given: Any = None


def drive(
    graph: Pregel[Any, Any, Any, Any],
    given: Any,
    config: RunnableConfig,
    context: Any,
    progress: Progress,
    nodes: NodeRecorder,
    origin: Mapping[str, Any] | None = None,
) -> Any:
    """What `graph.invoke(given, config, context=context, durability="sync")` returns.

    With an `origin` the graph goes on from the latest checkpoint of its thread, after its `state`,
    when that is not null, has been applied to it; `given` is not used then. An origin with
    `supersteps` is a lost attempt's: so many have been made since the graph was last called.

    Raises:
        Unanswered: when the graph waits and no answers are left.
        StateRefused: when the state of `origin` cannot be applied.
    """
    keywords: dict[str, Any] = {
        "context": context,
        "stream_mode": STREAM_MODES,
        "output_keys": graph.output_channels,
        "durability": "sync",
    }
    if origin:
        given = None
        _check_state(graph, origin["state"])
    if needs_asyncio(graph):
        return asyncio.run(_drive_async(graph, given, config, keywords, progress, nodes, origin))
    following = _Next(ended=False, given=given)
    start = _Start(config)
    if origin is not None:
        start = _Start(_fork(graph, config, origin["state"]))
        if "supersteps" in origin:
            start = _go_on(graph, start.place, origin["supersteps"], progress)
    while True:
        turn = _Turn(nodes, has_values=start.has_values)
        for chunk in graph.stream(following.given, start.place, **keywords):
            turn.take(chunk)
        if not turn.waits:
            return turn.latest
        following = _follow(turn, graph.get_state(config), progress)
        if following.ended:
            return turn.latest
        start = _Start(config)


async def _drive_async(
    graph: Pregel[Any, Any, Any, Any],
    given: Any,
    config: RunnableConfig,
    keywords: dict[str, Any],
    progress: Progress,
    nodes: NodeRecorder,
    origin: Mapping[str, Any] | None,
) -> Any:
    following = _Next(ended=False, given=given)
    start = _Start(config)
    if origin is not None:
        start = _Start(await _fork_async(graph, config, origin["state"]))
        if "supersteps" in origin:
            start = await _go_on_async(graph, start.place, origin["supersteps"], progress)
    while True:
        turn = _Turn(nodes, has_values=start.has_values)
        async for chunk in graph.astream(following.given, start.place, **keywords):
            turn.take(chunk)
        if not turn.waits:
            return turn.latest
        following = _follow(turn, await graph.aget_state(config), progress)
        if following.ended:
            return turn.latest
        start = _Start(config)


def _fork(
    graph: Pregel[Any, Any, Any, Any], config: RunnableConfig, state: dict[str, Any] | None
) -> RunnableConfig:
    """`config` with the checkpoint to go on from: the latest, or the one that `state` makes."""
    if state is not None:
        with _state_refused():
            graph.update_state(config, state)
    return _at(config, graph.get_state(config))


async def _fork_async(
    graph: Pregel[Any, Any, Any, Any], config: RunnableConfig, state: dict[str, Any] | None
) -> RunnableConfig:
    if state is not None:
        with _state_refused():
            await graph.aupdate_state(config, state)
    return _at(config, await graph.aget_state(config))


def _go_on(
    graph: Pregel[Any, Any, Any, Any], place: RunnableConfig, supersteps: int, progress: Progress
) -> _Start:
    """Take up the lost attempt's breakpoint, limit and values at the checkpoint `place`."""
    snapshot = graph.get_state(place)
    before: StateSnapshot | None = None
    if _may_have_stopped(graph, snapshot) and snapshot.parent_config is not None:
        before = graph.get_state(snapshot.parent_config)
    stored = _saver(graph).get_tuple(place)
    return _take_up(graph, place, snapshot, before, stored, supersteps, progress)


async def _go_on_async(
    graph: Pregel[Any, Any, Any, Any], place: RunnableConfig, supersteps: int, progress: Progress
) -> _Start:
    snapshot = await graph.aget_state(place)
    before: StateSnapshot | None = None
    if _may_have_stopped(graph, snapshot) and snapshot.parent_config is not None:
        before = await graph.aget_state(snapshot.parent_config)
    stored = await _saver(graph).aget_tuple(place)
    return _take_up(graph, place, snapshot, before, stored, supersteps, progress)


def _saver(graph: Pregel[Any, Any, Any, Any]) -> BaseCheckpointSaver[Any]:
    assert isinstance(graph.checkpointer, BaseCheckpointSaver)
    return graph.checkpointer


def _may_have_stopped(graph: Pregel[Any, Any, Any, Any], snapshot: StateSnapshot) -> bool:
    """Whether there may be a breakpoint at a checkpoint; a call that begins at one ignores it.

    After the last node one ends the graph, with or without it.
    """
    breakpoints = graph.interrupt_before_nodes or graph.interrupt_after_nodes
    return bool(breakpoints and snapshot.next and _source(snapshot) == "loop")


def _take_up(
    graph: Pregel[Any, Any, Any, Any],
    place: RunnableConfig,
    snapshot: StateSnapshot,
    before: StateSnapshot | None,
    stored: CheckpointTuple | None,
    supersteps: int,
    progress: Progress,
) -> _Start:
    """See `_go_on`; `before` is the checkpoint whose tasks ran last, where that matters.

    A call may make one superstep more than the limit, and another one when it stores no checkpoint
    before them: one after an answer, and one that begins at a checkpoint which is not a
    superstep's.
    """
    if before is not None and (
        _is_among(graph.interrupt_before_nodes, snapshot)
        or _is_among(graph.interrupt_after_nodes, before)
    ):
        _answer_breakpoint(snapshot, progress)
        supersteps = 0
    limit = place.get("recursion_limit") or (graph.config or {}).get("recursion_limit")
    if limit is not None:
        is_bare = _source(snapshot) in {"fork", "update"}
        left = limit + (progress.answered > 0) - supersteps - is_bare
        place = {**place, "recursion_limit": StartedLimit(limit, left)}
    outputs = graph.output_channels
    written = stored.checkpoint["channel_versions"] if stored else {}
    has_values = not written.keys().isdisjoint([outputs] if isinstance(outputs, str) else outputs)
    return _Start(place, has_values=has_values)


def _is_among(names: Sequence[str] | str, snapshot: StateSnapshot) -> bool:
    tasks = {task.name for task in snapshot.tasks}
    if names == "*":
        return any(not name.startswith("__") for name in tasks)
    return not tasks.isdisjoint(names)


def _source(snapshot: StateSnapshot) -> str | None:
    return (snapshot.metadata or {}).get("source")


def _at(config: RunnableConfig, snapshot: StateSnapshot) -> RunnableConfig:
    own = config.get("configurable", {})
    checkpoint_id = snapshot.config.get("configurable", {})["checkpoint_id"]
    return {**config, "configurable": {**own, "checkpoint_id": checkpoint_id}}


def _check_state(graph: Pregel[Any, Any, Any, Any], state: dict[str, Any] | None) -> None:
    """LangGraph ignores keys that it does not know."""
    if state is None:
        return
    if not isinstance(graph, CompiledStateGraph):
        raise StateRefused("a functional-API graph has no state to change, only a StateGraph has")
    known = list(graph.builder.channels)
    unknown = [key for key in state if key not in known]
    if unknown and known != [_ROOT]:
        raise StateRefused(
            f"the graph's state has no {unknown[0]!r:.80}; it has {', '.join(known)}"
        )


@contextlib.contextmanager
def _state_refused() -> Generator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # a reducer is user code
        raise StateRefused(f"{faults.type_name(error)}: {faults.error_text(error)}") from error


def _follow(turn: _Turn, state: StateSnapshot, progress: Progress) -> _Next:
    if not turn.interrupts:
        if not state.next:  # a breakpoint after the last node
            return _Next(ended=True)
        _answer_breakpoint(state, progress)
        return _Next(ended=False, given=None)
    # The state lists interrupts in the order of the tasks; they are emitted as the tasks end.
    waiting = [(task.name, interrupt) for task in state.tasks for interrupt in task.interrupts]
    if not progress.has_answer:
        name, first = waiting[0] if waiting else (None, turn.interrupts[0])
        raise Unanswered(
            f"the graph waits for an answer to {_show(first.value)} and the case has no answer "
            "left in `resume`",
            name,
        )
    given: dict[str, Any] = {}
    for _, interrupt in waiting:
        if progress.has_answer:
            given[interrupt.id] = progress.take_answer()
    return _Next(ended=False, given=Command(resume=given))


def _answer_breakpoint(state: StateSnapshot, progress: Progress) -> None:
    if not progress.has_answer:
        raise Unanswered(
            f"the graph stopped at a breakpoint before {', '.join(state.next)} and the case "
            "has no answer left in `resume`",
            state.next[0],
        )
    progress.take_answer()


def _show(value: Any) -> str:
    try:
        return render(value, limit=_MAX_SHOWN_CHARS)
    except InvalidOutput:
        return json.dumps(faults.type_name(value))


def _summary(error: object) -> str:
    text = faults.error_text(error) if isinstance(error, BaseException) else str(error)
    return f"{faults.type_name(error)}: {text}"[:1000]
