"""`wtb prune`."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from wtb_core.commands.options import EXIT_NOT_ALL, json_option
from wtb_core.data import DataDir
from wtb_core.display import make_console, strip_controls, to_json
from wtb_core.serving import read_config
from wtb_core.specs import parse_duration_s
from wtb_core.states import TERMINAL_BATCH

_STATES = ",".join(sorted(TERMINAL_BATCH))


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return parse_duration_s(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _States(click.ParamType[frozenset[str]]):
    name = "states"

    def convert(
        self,
        value: str | frozenset[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> frozenset[str]:
        if not isinstance(value, str):
            return value
        states = frozenset(part.strip() for part in value.split(","))
        if unknown := states - TERMINAL_BATCH:
            self.fail(f"{', '.join(sorted(unknown))!r} is none of {_STATES}", param, ctx)
        return states


@click.command()
@click.argument(
    "config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--older-than",
    "older_than_s",
    type=_Duration(),
    default="30d",
    show_default=True,
    help="How long ago a batch must have ended, such as 12h or 30d.",
)
@click.option(
    "--status",
    "statuses",
    type=_States(),
    default=_STATES,
    show_default=True,
    help="Only batches that ended so; several with commas.",
)
@click.option("--project", metavar="NAME", help="Only batches of this project.")
@click.option(
    "--keep-last",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Keep the newest N ended batches of each project, whatever their age.",
)
@click.option(
    "--grace",
    "grace_s",
    type=_Duration(),
    default="2h",
    show_default=True,
    help="Keep files that were stored within this time; less only while nothing runs.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; without a terminal nobody is asked.")
@click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The data directory, with all its data in it; instead of the config's.",
)
@json_option
def prune(
    config: Path | None,
    older_than_s: float,
    statuses: frozenset[str],
    project: str | None,
    keep_last: int,
    grace_s: float,
    data_dir: Path | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove batches that ended long ago, and the files that nothing needs any more.

    CONFIG is chosen as for `wtb serve`. A service may run meanwhile. Exit code 1 when something
    could not be removed.
    """
    # It brings projects and checkpoints with it, which hardly another command needs.
    from wtb_core import retention

    if config is not None and data_dir is not None:
        raise click.UsageError("give a CONFIG or --data-dir, not both")
    data = read_config(config).data if data_dir is None else DataDir(data_dir.absolute())
    policy = retention.Policy(older_than_s, statuses, keep_last, project, grace_s)
    console = make_console()
    if not (dry_run or yes or as_json) and sys.stdin.isatty():
        _print_report(retention.prune(data, policy, dry_run=True).describe(), console)
        click.confirm("Remove this?", abort=True)
    report = retention.prune(data, policy, dry_run=dry_run).describe()
    if as_json:
        click.echo(to_json(report))
    else:
        _print_report(report, console)
    if report["problems"]:
        sys.exit(EXIT_NOT_ALL)


def _print_report(report: Mapping[str, Any], console: Console) -> None:
    for line in _tell(report):
        console.print(line, markup=False, soft_wrap=True)


def _tell(report: Mapping[str, Any]) -> Iterator[str]:
    verb = "would be removed" if report["dry_run"] else "removed"
    yield f"{report['batches']} batches {verb} from {report['data_dir']}"
    rows = f"{report['executions']} executions, {report['events']} events"
    yield f"with {rows}, about {_size(report['text_bytes'])} in the database"
    for name, what in (
        ("blobs", "blobs"),
        ("workspaces", "kept workspaces"),
        ("bases", "materialised project versions"),
    ):
        yield f"{report[name]} {what} {verb}: {_size(report[f'{name}_bytes'])}"
    if report["held"]:
        yield f"{report['held']} batches stay: later ones have taken over results from them"
    if report["young_blobs"]:
        yield f"{report['young_blobs']} blobs stay that nothing names: they are too young"
    for problem in report["problems"]:
        yield f"problem: {strip_controls(problem)}"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
