"""What commands share: reaching a service, choosing a part of a spec, groups that list."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, NamedTuple

import click
from rich.console import Console

from wtb_core.display import make_console, print_record, to_json
from wtb_core.selection import Selection
from wtb_core.testbench import DEFAULT_URL, TestBench

EXIT_NOT_ALL = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON and nothing else; streams line by line."
)
url_option = click.option(
    "--url",
    envvar="WTB_URL",
    default=DEFAULT_URL,
    show_default=True,
    help="The service; also WTB_URL.",
)
spec_argument = click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))
key_option = click.option(
    "--idempotency-key", metavar="KEY", help="Submitting twice with one key makes one batch."
)
watch_option = click.option(
    "--watch/--detach", default=False, help="Follow the batch to its end, or only name it."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what the spec expands to, and submit nothing."
)


class Door(NamedTuple):
    """A service, and how to print what it answers."""

    bench: TestBench
    url: str
    console: Console
    as_json: bool

    def show(self, value: Any, render: Callable[[Any, Console], None] = print_record) -> None:
        """Print `value` as JSON where that was asked for, else as `render` does."""
        if self.as_json:
            click.echo(to_json(value))
        else:
            render(value, self.console)


def with_service(command: Callable[Concatenate[Door, ...], None]) -> Callable[..., None]:
    """Give a command `--url`, `--token` and `--json`, and the open service as first argument."""

    @url_option
    @click.option("--token", envvar="WTB_TOKEN", help="A bearer token; better WTB_TOKEN.")
    @json_option
    @functools.wraps(command)
    def run(*args: Any, url: str, token: str | None, as_json: bool, **options: Any) -> None:
        with TestBench.connect(url, token) as bench:
            command(Door(bench, bench.where, make_console(), as_json), *args, **options)

    return run


def with_selection(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that take a part of a spec, as one argument `selection`."""

    @click.option(
        "--variant", "variants", metavar="GLOB", multiple=True, help="Only variants so named."
    )
    @click.option(
        "--case", "cases", metavar="GLOB", multiple=True, help="Only cases with such ids."
    )
    @click.option("--first", metavar="N", type=click.IntRange(1), help="Only the first N cases.")
    @click.option(
        "--repetitions", metavar="N", type=click.IntRange(1), help="Instead of the spec's."
    )
    @click.option("--name", help="The batch's name, instead of the spec's.")
    @click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="One more label.")
    @functools.wraps(command)
    def run(
        *args: Any,
        variants: tuple[str, ...],
        cases: tuple[str, ...],
        first: int | None,
        repetitions: int | None,
        name: str | None,
        labels: tuple[str, ...],
        **options: Any,
    ) -> None:
        selection = Selection(
            variants, cases, first, repetitions, name, parse_pairs(labels, "--label")
        )
        command(*args, selection=selection, **options)

    return run


class ListingGroup(click.Group):
    """A noun that alone means `list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `list` before options that are not the group's own."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def parse_pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    """Each `KEY=VALUE` that an option was given; the last of a key counts."""
    pairs: dict[str, str] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint=option)
        pairs[key] = value
    return pairs
