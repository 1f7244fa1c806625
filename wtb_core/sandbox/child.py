"""Runs one job beside user code: an attempt, its evaluators, a build, a description, an audit.

The job arrives as the first frame of the session. Everything that happens is posted, the result
last; then the process ends without waiting for threads that user code left behind. An exception of
user code, SystemExit and KeyboardInterrupt included, is a failure of kind `error`; a process that
ends without a result has crashed.
"""

import io
import json
import os
import random
import resource
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from wtb_core.checkpoints import ChannelSession, SessionSaver
from wtb_core.errors import GraphError, InvalidOutput
from wtb_core.graphs import prepare, resolve_graph, takes_config
from wtb_core.sandbox import confinement, faults, scoring
from wtb_core.sandbox.describe import describe_project
from wtb_core.sandbox.driving import (
    STREAM_MODES,
    NodeRecorder,
    StateRefused,
    Unanswered,
    drive,
)
from wtb_core.sandbox.obstacles import find_fork_obstacle
from wtb_core.sandbox.progress import Progress
from wtb_core.sandbox.project import Loaded, LoadedProject, build, explain
from wtb_core.sandbox.rendering import render
from wtb_core.sandbox.wire import Channel

__all__ = ["SERDE", "STREAM_MODES", "main"]

# Only this execution's own processes read what is pickled here.
SERDE = JsonPlusSerializer(pickle_fallback=True)

_RESERVE_BYTES = 64 * 1024**2


class _Fault(Exception):
    """The attempt cannot start; the fields of its failure."""

    def __init__(self, failure: dict[str, Any]) -> None:
        super().__init__(failure)
        self.failure = failure


def main(sock: socket.socket, project: LoadedProject | None) -> NoReturn:
    """Receive a job, do it, end the process; `project` is None in a new interpreter."""
    channel = Channel(sock)
    header, blobs = channel.receive()
    session = ChannelSession(channel)
    job: dict[str, Any] = json.loads(blobs[0])
    _enter(job)
    project = project or LoadedProject(job["setup"])
    match header["op"]:
        case "run":
            _run(job, project, session)
        case "evaluate":
            os.chdir(job["tmp"])
            _limit_memory(job["memory"])
            session.post({"op": "started"})
            scoring.evaluate(job, project, session)
            _end(session, {"op": "result", "status": "succeeded"})
        case "build":
            os.chdir(job["workspace"])
            session.post({"op": "started"})
            reason = build(job["reference"], Path(job["workspace"]), project)
            _end(session, {"op": "result", "reason": reason})
        case "describe":
            obstacle = find_fork_obstacle(frozenset({sock.fileno()}))
            description = json.dumps(describe_project(project, obstacle)).encode()
            _end(session, {"op": "result", "status": "succeeded"}, description)
        case "probe":
            _probe(job, session)
        case operation:
            raise ValueError(f"unknown job {operation!r}")
    os._exit(0)


def _probe(job: dict[str, Any], session: ChannelSession) -> None:
    from wtb_core.sandbox import probes  # an audit's alone

    os.chdir(job["workspace"])
    _limit_memory(job["memory"])
    session.post({"op": "started"})
    values = {**job["surroundings"], "workspace": job["workspace"]}
    probes.run(
        probes.Surroundings.read(values),
        job["probes"],
        lambda finding: session.post({"op": "finding", "finding": [*finding]}),
    )
    _end(session, {"op": "result", "status": "succeeded"})


def _end(session: ChannelSession, header: dict[str, Any], *blobs: bytes) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a full disk, or closed by user code
            continue
    session.post(header, *blobs)


def _enter(job: dict[str, Any]) -> None:
    """Take on the attempt's bounds, directories and randomness."""
    confinement.apply(job["bounds"])
    os.environ["HOME"] = job["home"]
    os.environ["TMPDIR"] = job["tmp"]
    tempfile.tempdir = None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # unless user code has put its own there
            stream.reconfigure(line_buffering=True)  # what was printed survives a crash
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def _limit_memory(memory_bytes: int) -> None:
    """Let the process allocate `memory_bytes` beyond the interpreter with the project imported.

    RLIMIT_DATA counts private writable memory, see getrlimit(2). The hard limit leaves a reserve,
    with which a process that ran out can still say so.
    """
    used = 0
    with Path("/proc/self/status").open(errors="replace") as status:
        for line in status:
            if line.startswith("VmData:"):
                used = int(line.split()[1]) * 1024
    limit = used + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit + _RESERVE_BYTES))


def _use_reserve() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _run(job: dict[str, Any], project: LoadedProject, session: ChannelSession) -> None:
    usage = UsageMetadataCallbackHandler()
    output = b""
    nodes = NodeRecorder(session)
    case, origin = job["case"], job["origin"]
    progress = Progress(case.get("resume") or [], (origin or {}).get("answered", 0))
    try:
        graph, config = _prepare(job, project, session, progress)
        config["callbacks"] = [usage]
        os.chdir(job["workspace"])
        _limit_memory(job["memory"])
        session.post({"op": "started"})
        nodes = NodeRecorder(session)
        context = job["variant"]["context"] or None
        value = drive(graph, case["input"], config, context, progress, nodes, origin)
        output = render(value, limit=job["output"]).encode()
        failure = None
    except BaseException as error:  # noqa: BLE001 - whatever ends user code is a result
        if isinstance(error, MemoryError):
            _use_reserve()
        failure = _explain_failure(error, nodes)
    status = "failed" if failure else "succeeded"
    header = {"op": "result", "status": status, "failure": failure, "usage": _usage(usage)}
    _end(session, header, output)


def _prepare(
    job: dict[str, Any], project: LoadedProject, session: ChannelSession, progress: Progress
) -> Any:
    variant = job["variant"]
    loaded = _required(project.graphs, variant["graph"], "graph")
    implementations = {
        node: _required(project.nodes.get(node, {}), name, f"implementation of {node}").value
        for node, name in variant["nodes"].items()
    }
    config: RunnableConfig = {
        "configurable": {**variant["config"], "thread_id": job["execution_id"]}
    }
    if variant["recursion_limit"] is not None:
        config["recursion_limit"] = variant["recursion_limit"]
    try:
        found = loaded.value
        if takes_config(found):
            found = resolve_graph(loaded.reference, found, config.copy())
        else:
            found = resolve_graph(loaded.reference, found)
        saver = SessionSaver(session, serde=SERDE, progress=progress)
        return prepare(loaded.reference, found, implementations, saver), config
    except GraphError as error:
        raise _Fault({"kind": "error", "reason": str(error)}) from error
    except Exception as error:  # a factory is user code, and the variant's config may be its fault
        fault = explain(error, loaded.reference, project.roots)
        raise _Fault({"kind": "error", **fault}) from error


def _required(entries: dict[str, Loaded], name: str, noun: str) -> Loaded:
    if name not in entries:
        raise _Fault({"kind": "setup", "reason": f"the project has no {noun} {name!r}"})
    loaded = entries[name]
    if loaded.fault is not None:
        raise _Fault({"kind": "setup", **loaded.fault})
    return loaded


def _explain_failure(error: BaseException, nodes: NodeRecorder) -> dict[str, Any]:
    if isinstance(error, _Fault):
        return error.failure
    if isinstance(error, Unanswered):
        return {"kind": "interrupted", "reason": faults.clean(error.reason), "node": error.node}
    if isinstance(error, StateRefused):
        reason = faults.clean(f"the state of the fork cannot be applied: {error.reason}")
        cause = faults.describe_error(error.__cause__) if error.__cause__ else {}
        return {"kind": "error", "reason": reason, **cause}
    if isinstance(error, InvalidOutput):
        return {"kind": "invalid_output", "reason": faults.clean(str(error))}
    described = faults.describe_error(error)
    memory = isinstance(error, MemoryError)
    reason = (
        "the memory of limits.memory is used up"
        if memory
        else f"{described['error_type']}: {described['message']}"
    )
    kind = "out_of_memory" if memory else "error"
    return {"kind": kind, "reason": reason, **described, "node": nodes.fail(error)}


def _usage(handler: UsageMetadataCallbackHandler) -> dict[str, dict[str, float]]:
    return {
        model: {
            "input_tokens": counted["input_tokens"],
            "output_tokens": counted["output_tokens"],
        }
        for model, counted in handler.usage_metadata.items()
    }
