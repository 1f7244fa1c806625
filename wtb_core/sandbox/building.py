"""Runs a project's build in processes of its own: a function that fills the base workspace."""

import asyncio
from pathlib import Path

from wtb_core.errors import SetupError, WireError
from wtb_core.redaction import Redactor
from wtb_core.sandbox.ladder import Sandbox
from wtb_core.sandbox.processes import describe_status
from wtb_core.sandbox.runs import Ended, Run
from wtb_core.sandbox.setup import ProjectSetup
from wtb_core.sandbox.supervisor import Supervisor, make_place, read_tail
from wtb_core.sandbox.wire import Frame

BUILD_TIMEOUT_S = 600.0
BUILD_FILE_BYTES = 1024**3


async def build_workspace(
    sandbox: Sandbox,
    setup: ProjectSetup,
    reference: str,
    workspace: Path,
    directory: Path,
    timeout_s: float = BUILD_TIMEOUT_S,
) -> str | None:
    """Call the function `reference` with `workspace`; what is wrong, None when it went well.

    Args:
        sandbox: how its process is confined.
        setup: the project; only the build's own module is imported.
        reference: the function, which takes one path.
        workspace: an existing directory with nothing beside it, the function's argument and
            working directory.
        directory: a new directory, private to the process.
        timeout_s: how long the import and the function may take.
    """
    bare = setup.model_copy(update={"graphs": {}, "nodes": {}, "evaluators": {}, "start": "fresh"})
    supervisor = Supervisor(sandbox, bare, directory, workspace.parent)
    output = directory / "output"
    try:
        place = await asyncio.to_thread(make_place, workspace.parent, output)
        place = place._replace(workspace=workspace, file_size=BUILD_FILE_BYTES)
        job = {"workspace": str(workspace), "reference": reference}
        launched = await supervisor.launch(place, job)
        ended = await Run(launched, _refuse, timeout_s).follow("build")
        problem = _explain(ended, timeout_s, read_tail(output) or read_tail(supervisor.log))
    except SetupError as error:
        problem = error.message
    finally:
        await supervisor.close()
    return None if problem is None else Redactor(setup.secrets).text(f"build: {problem}")


def _explain(ended: Ended, timeout_s: float, said: str) -> str | None:
    if ended.result is not None:
        reason = ended.result.get("reason")
        return None if reason is None else str(reason)
    last = f"; it last said:\n{said}" if said else ""
    if ended.timed_out:
        return f"it took longer than {timeout_s:g} s and was killed{last}"
    if ended.broken is not None:
        return f"its process sent something that is no message: {ended.broken}"
    return f"its process {describe_status(ended.exit.status)}{last}"


async def _refuse(header: dict[str, object], _blobs: list[bytes]) -> Frame | None:
    raise WireError(f"{header.get('op')!r} is no request of a build")
