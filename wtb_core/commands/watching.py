"""Following a batch to its end, and what the exit code makes of it."""

import sys
from typing import Any

import click

from wtb_core.commands.options import EXIT_INTERRUPTED, EXIT_NOT_ALL, Door
from wtb_core.display import follow, print_comparison, to_json
from wtb_core.report import has_succeeded


def launch(door: Door, batch_id: str, *, watch: bool, **facts: Any) -> None:
    """Follow a new batch, or say where it is, with `facts`."""
    if watch:
        watch_batch(door, batch_id, goes_on=True)
    else:
        door.show({"batch_id": batch_id, **facts, "url": f"{door.url}/v1/batches/{batch_id}"})


def watch_batch(door: Door, batch_id: str, *, goes_on: bool) -> None:
    """Follow a batch to its end, print its comparison, exit by its result.

    Args:
        door: where the batch is.
        batch_id: the batch.
        goes_on: whether the batch outlives us when we are interrupted.
    """
    bench, console = door.bench, door.console
    total = bench.batch(batch_id)["counts"]["total"]
    if not door.as_json:
        console.print(f"batch {batch_id} on {bench.where}", soft_wrap=True)
    try:
        if door.as_json:
            for event in bench.events(batch_id):
                click.echo(to_json(event))
        else:
            for _ in follow(bench.events(batch_id), total, console):
                pass
    except KeyboardInterrupt:
        if not goes_on:
            raise
        click.echo(f"the batch goes on; follow it again: wtb batch watch {batch_id}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    if not door.as_json:
        print_comparison(bench.comparison(batch_id), console)
    if not has_succeeded(bench.batch(batch_id)):
        sys.exit(EXIT_NOT_ALL)
