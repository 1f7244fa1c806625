"""`wtb execution`: show, logs, cancel."""

import click

from wtb_core.commands.options import Door, with_service
from wtb_core.display import print_execution_in_full, strip_controls, to_json
from wtb_core.testbench import DEFAULT_REASON, LogStream


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
@click.option("--attempt", type=click.IntRange(1), help="By default the latest that ended.")
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
@click.option("--reason", default=DEFAULT_REASON, show_default=True)
@with_service
def cancel(door: Door, execution_id: str, reason: str) -> None:
    """Stop one execution."""
    changed = door.bench.cancel_execution(execution_id, reason)
    door.show({"execution_id": execution_id, "changed": changed})
