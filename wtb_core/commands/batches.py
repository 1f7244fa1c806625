"""`wtb batch`: submit, list, show, watch, cancel, retry, compare, export; and `wtb run`."""

from collections import Counter
from pathlib import Path

import click

from wtb_core.commands.options import (
    Door,
    ListingGroup,
    dry_run_option,
    json_option,
    key_option,
    spec_argument,
    watch_option,
    with_selection,
    with_service,
)
from wtb_core.commands.watching import launch, watch_batch
from wtb_core.display import (
    make_console,
    print_batch,
    print_batches,
    print_comparison,
    print_plan,
    to_json,
)
from wtb_core.export import FORMATS, export, write_atomically
from wtb_core.report import render_csv, render_markdown
from wtb_core.selection import Selection
from wtb_core.states import BATCH, TERMINAL_BATCH
from wtb_core.testbench import (
    DEFAULT_PROJECTS,
    DEFAULT_REASON,
    ProjectVersion,
    TestBench,
    read_spec,
)

STATES = sorted({*BATCH.values(), "pending"} | TERMINAL_BATCH)


@click.command()
@spec_argument
@click.option("--data-dir", default=".wtb/local", show_default=True, help="Where results are kept.")
@click.option(
    "--project", "projects", metavar="GLOB", multiple=True, help="A project file or a glob."
)
@with_selection
@dry_run_option
@key_option
@json_option
def run(
    spec: Path,
    data_dir: str,
    projects: tuple[str, ...],
    selection: Selection,
    idempotency_key: str | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run the batch SPEC here, without a server, one execution after the other."""
    document = selection.apply(read_spec(spec))
    with TestBench.local(data_dir, projects=projects or DEFAULT_PROJECTS) as bench:
        door = Door(bench, bench.where, make_console(), as_json)
        if dry_run:
            door.show(bench.expand(document), print_plan)
        else:
            watch_batch(door, bench.submit(document, idempotency_key), goes_on=False)


@click.group(cls=ListingGroup)
def batch() -> None:
    """Batches of a running service; alone, list them."""


@batch.command()
@spec_argument
@with_selection
@watch_option
@dry_run_option
@key_option
@with_service
def submit(
    door: Door,
    spec: Path,
    selection: Selection,
    idempotency_key: str | None,
    *,
    watch: bool,
    dry_run: bool,
) -> None:
    """Submit the batch SPEC."""
    document = selection.apply(read_spec(spec))
    if dry_run:
        door.show(door.bench.expand(document), print_plan)
    else:
        launch(door, door.bench.submit(document, idempotency_key), watch=watch)


@batch.command("list")
@click.option("--status", type=click.Choice(STATES), help="Only batches in this state.")
@click.option("--project", metavar="NAME", help="Only batches of this project.")
@click.option("--label", metavar="KEY=VALUE", help="Only batches with this label.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--cursor", help="Where an earlier page said that the next one begins.")
@with_service
def list_batches(
    door: Door,
    status: str | None,
    project: str | None,
    label: str | None,
    limit: int,
    cursor: str | None,
) -> None:
    """List batches, newest first."""
    page = door.bench.batches(status, project, label, limit, cursor)
    door.show(page, print_batches)
    if not door.as_json and page["next_cursor"] is not None:
        click.echo(f"more: --cursor {page['next_cursor']}", err=True)


@batch.command()
@click.argument("batch_id", metavar="ID")
@with_service
def show(door: Door, batch_id: str) -> None:
    """Show a batch's status, counts, pace and failures."""
    found = door.bench.batch(batch_id)
    if door.as_json:
        door.show(found)
        return
    failures: Counter[str] = Counter()
    for row in door.bench.comparison(batch_id)["variants"]:
        failures.update(row["failed"])
    print_batch(found, failures, door.console)


@batch.command()
@click.argument("batch_id", metavar="ID")
@with_service
def watch(door: Door, batch_id: str) -> None:
    """Follow a batch from its first event to its end; Ctrl-C leaves it running."""
    watch_batch(door, batch_id, goes_on=True)


@batch.command()
@click.argument("batch_id", metavar="ID")
@click.option("--reason", default=DEFAULT_REASON, show_default=True)
@with_service
def cancel(door: Door, batch_id: str, reason: str) -> None:
    """Stop a batch."""
    changed = door.bench.cancel(batch_id, reason)
    door.show({"batch_id": batch_id, "changed": changed})


@batch.command()
@click.argument("batch_id", metavar="ID")
@click.option("--latest", is_flag=True, help="With the project's code of now, not of then.")
@watch_option
@key_option
@with_service
def retry(
    door: Door, batch_id: str, idempotency_key: str | None, *, latest: bool, watch: bool
) -> None:
    """Run what did not succeed in an ended batch again, as a new batch."""
    version: ProjectVersion = "latest" if latest else "same"
    new_id = door.bench.retry(batch_id, version, idempotency_key)
    launch(door, new_id, watch=watch, retry_of=batch_id)


@batch.command()
@click.argument("batch_id", metavar="ID")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "csv", "md"]),
    default="table",
    show_default=True,
)
@with_service
def compare(door: Door, batch_id: str, format_: str) -> None:
    """Compare the variants of a batch."""
    comparison = door.bench.comparison(batch_id)
    if door.as_json or format_ == "json":
        click.echo(to_json(comparison))
    elif format_ == "csv":
        click.echo(render_csv(comparison), nl=False)
    elif format_ == "md":
        click.echo(render_markdown(comparison), nl=False)
    else:
        print_comparison(comparison, door.console)


@batch.command("export")
@click.argument("batch_id", metavar="ID")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="json",
    show_default=True,
    help="junit: one test case an execution.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Written whole or not at all; by default standard output.",
)
@with_service
def export_batch(door: Door, batch_id: str, format_: str, output: Path | None) -> None:
    """Write a batch's results for other programs."""
    found = door.bench.batch(batch_id)
    comparison = door.bench.comparison(batch_id)
    pieces = export(format_, found, comparison, door.bench.results(batch_id))
    if output is None:
        for piece in pieces:
            click.echo(piece, nl=False)
        return
    write_atomically(output, pieces)
    door.show({"batch_id": batch_id, "format": format_, "file": str(output)})
