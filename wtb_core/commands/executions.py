"""`wtb execution`: show, logs, checkpoints, files, diff, fork, cancel."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wtb_core.commands.options import Door, key_option, parse_pairs, watch_option, with_service
from wtb_core.commands.watching import launch
from wtb_core.display import (
    print_changes,
    print_checkpoints,
    print_diff,
    print_execution_in_full,
    strip_controls,
    to_json,
)
from wtb_core.documents import parse_json
from wtb_core.errors import InvalidDocument
from wtb_core.files.paths import show_path
from wtb_core.testbench import DEFAULT_REASON, LogStream, TestBench

_attempt_option = click.option(
    "--attempt", type=click.IntRange(1), help="By default the latest that ended."
)


def _with_points(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--from` and `--to`, as one argument `points`."""
    text = "A checkpoint's id, base, start or final."

    @click.option("--from", "from_", metavar="POINT", default="start", show_default=True, help=text)
    @click.option("--to", metavar="POINT", default="final", show_default=True, help=text)
    @functools.wraps(command)
    def run(*args: Any, from_: str, to: str, **options: Any) -> None:
        command(*args, points=(from_, to), **options)

    return run


@click.group()
def execution() -> None:
    """Executions of a running service."""


@execution.command()
@click.argument("execution_id", metavar="ID")
@with_service
def show(door: Door, execution_id: str) -> None:
    """Show an execution with its scores, failure, attempts and output."""
    door.show(door.bench.execution(execution_id), print_execution_in_full)


@execution.command()
@click.argument("execution_id", metavar="ID")
@click.option("--stderr", is_flag=True, help="Standard error instead of standard output.")
@_attempt_option
@click.option("--raw", is_flag=True, help="The bytes as they are, control sequences included.")
@with_service
def logs(door: Door, execution_id: str, attempt: int | None, *, stderr: bool, raw: bool) -> None:
    """Print what an execution wrote; control sequences are taken out."""
    stream: LogStream = "stderr" if stderr else "stdout"
    if raw:
        click.echo(door.bench.log_bytes(execution_id, stream, attempt), nl=False)
        return
    text = door.bench.log(execution_id, stream, attempt)
    if door.as_json:
        found = {"execution_id": execution_id, "attempt": attempt, "stream": stream, "text": text}
        click.echo(to_json(found))
    else:
        click.echo(strip_controls(text), nl=False)


@execution.command()
@click.argument("execution_id", metavar="ID")
@_attempt_option
@with_service
def checkpoints(door: Door, execution_id: str, attempt: int | None) -> None:
    """List an execution's checkpoints, oldest first; those of the root have a number."""
    door.show(door.bench.checkpoints(execution_id, attempt), print_checkpoints)


@execution.command()
@click.argument("execution_id", metavar="ID")
@_with_points
@_attempt_option
@click.option("--get", "path", metavar="PATH", help="Write this file, as it is at `--to`.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.File("wb", lazy=True),
    help="Where `--get` writes; `-` is standard output.",
)
@with_service
def files(
    door: Door,
    execution_id: str,
    attempt: int | None,
    points: tuple[str, str],
    path: str | None,
    output: Any,
) -> None:
    """List the files that an execution created (A), modified (M) and deleted (D), or get one."""
    if (path is None) != (output is None):
        raise click.UsageError("give --get PATH and -o FILE together")
    if path is None:
        door.show(door.bench.files(execution_id, *points, attempt), print_changes)
        return
    data = door.bench.read_file(execution_id, path, points[1], attempt)
    output.write(data)
    if output.name != "-":
        door.show({"path": show_path(path), "file": output.name, "size_bytes": len(data)})


@execution.command()
@click.argument("execution_id", metavar="ID")
@click.argument("paths", metavar="PATH", nargs=-1)
@_with_points
@_attempt_option
@with_service
def diff(
    door: Door,
    execution_id: str,
    paths: tuple[str, ...],
    attempt: int | None,
    points: tuple[str, str],
) -> None:
    """Show what an execution changed line by line, all of it or at and below each PATH."""
    found = door.bench.files(execution_id, *points, attempt, diff=True)
    if paths:
        wanted = [show_path(path).rstrip("/") for path in paths]
        found["items"] = [
            item
            for item in found["items"]
            if any(item["path"] == path or item["path"].startswith(f"{path}/") for path in wanted)
        ]
    door.show(found, print_diff)


@execution.command()
@click.argument("execution_id", metavar="ID")
@click.option(
    "--checkpoint",
    required=True,
    metavar="CHECKPOINT",
    help="An id, `first`, `last`, or a number of `wtb execution checkpoints`.",
)
@click.option("--node", "nodes", metavar="NODE=IMPL", multiple=True, help="Another implementation.")
@click.option(
    "--config", metavar="KEY=VALUE", multiple=True, help="JSON; what is none is taken as text."
)
@click.option("--state", metavar="JSON", help="What to change in the state; or @FILE.")
@_attempt_option
@watch_option
@key_option
@with_service
def fork(
    door: Door,
    execution_id: str,
    checkpoint: str,
    nodes: tuple[str, ...],
    config: tuple[str, ...],
    state: str | None,
    attempt: int | None,
    idempotency_key: str | None,
    *,
    watch: bool,
) -> None:
    """Go on from a checkpoint with its state and files, as a new batch of one execution."""
    batch_id = door.bench.fork(
        execution_id,
        _find_checkpoint(door.bench, execution_id, attempt, checkpoint),
        None if state is None else _read_state(state),
        parse_pairs(nodes, "--node"),
        {key: _read_value(text) for key, text in parse_pairs(config, "--config").items()},
        attempt,
        idempotency_key,
    )
    launch(door, batch_id, watch=watch, forked_from=execution_id)


@execution.command()
@click.argument("execution_id", metavar="ID")
@click.option("--reason", default=DEFAULT_REASON, show_default=True)
@with_service
def cancel(door: Door, execution_id: str, reason: str) -> None:
    """Stop one execution."""
    changed = door.bench.cancel_execution(execution_id, reason)
    door.show({"execution_id": execution_id, "changed": changed})


def _find_checkpoint(bench: TestBench, execution_id: str, attempt: int | None, wanted: str) -> str:
    """The root checkpoint named by `first`, `last` or its number; any other text is an id."""
    number = {"first": 0, "last": -1}.get(wanted)
    if number is None:
        if not re.fullmatch(r"-?[0-9]{1,9}", wanted):
            return wanted
        number = int(wanted)
    roots = [item for item in bench.checkpoints(execution_id, attempt) if not item["ns"]]
    if not -len(roots) <= number < len(roots):
        message = f"there is no checkpoint {wanted}; the execution has {len(roots)}"
        raise click.BadParameter(message, param_hint="--checkpoint")
    return roots[number]["checkpoint_id"]


def _read_state(text: str) -> Any:
    return parse_json(Path(text[1:]).read_bytes() if text.startswith("@") else text.encode())


def _read_value(text: str) -> Any:
    try:
        return parse_json(text.encode())
    except InvalidDocument:
        return text
