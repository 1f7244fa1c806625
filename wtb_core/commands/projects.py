"""`wtb project`: list, show, check."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from wtb_core.commands.options import (
    EXIT_NOT_ALL,
    Door,
    ListingGroup,
    json_option,
    with_service,
)
from wtb_core.display import make_console, print_project, print_projects, to_json
from wtb_core.spec_files import read_spec


@click.group(cls=ListingGroup)
def project() -> None:
    """Projects of a running service, and a check of your own; alone, list them."""


@project.command("list")
@with_service
def list_projects(door: Door) -> None:
    """List projects with their problems."""
    items = door.bench.projects()
    if door.as_json:
        door.show({"items": items})
    else:
        print_projects(items, door.console)


@project.command()
@click.argument("name")
@with_service
def show(door: Door, name: str) -> None:
    """Show what a project offers: graphs, nodes, evaluators, problems."""
    door.show(door.bench.project(name), print_project)


@project.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--graph", default="default", show_default=True, help="The graph to run.")
@click.option("--input", "given", metavar="JSON", help="Run one case with this input.")
@click.option(
    "--spec",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Check this batch against the project.",
)
@json_option
def check(path: Path, graph: str, given: str | None, spec: Path | None, *, as_json: bool) -> None:
    """Import and compile the project at PATH, list what it offers, say what is wrong."""
    # It brings the sandbox with it, which no other command needs.
    from wtb_core import checking

    value = checking.MISSING if given is None else _parse(given)
    batch = None if spec is None else read_spec(spec)
    report = checking.check_project(path, graph=graph, given=value, spec=batch)
    if as_json:
        click.echo(to_json(report.model_dump(mode="json")))
    else:
        checking.render_check(report, make_console())
    if not report.ok:
        sys.exit(EXIT_NOT_ALL)


def _parse(given: str) -> Any:
    try:
        return json.loads(given)
    except ValueError as error:
        raise click.BadParameter(f"is not JSON: {error}", param_hint="--input") from error
