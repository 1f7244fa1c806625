"""The `wtb` command.

Exit codes: 0 the batch completed and every execution succeeded (scores do not matter), 1 it did
not, 2 usage or a bad spec, 3 the server cannot be reached.
"""

import json
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from wtb_core import demo as demonstration
from wtb_core.clients import HttpClient
from wtb_core.display import follow, make_console, print_comparison, strip_controls
from wtb_core.errors import (
    Conflict,
    InvalidRequest,
    InvalidSpec,
    NotFound,
    RequestRefused,
    Unavailable,
    WtbError,
)
from wtb_core.spec_files import read_spec
from wtb_core.testbench import DEFAULT_PROJECTS, DEFAULT_URL, TestBench

EXIT_NOT_ALL = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

_url = click.option("--url", envvar="WTB_URL", default=DEFAULT_URL, show_default=True)
_token = click.option("--token", envvar="WTB_TOKEN", help="A bearer token.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")


@click.group()
@click.version_option(package_name="wtb-serve")
def main() -> None:
    """Batch-test variants of LangGraph workflows."""


@main.command()
@click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data-dir", default=".wtb/local", show_default=True, help="Where results are kept.")
@click.option("--project", "projects", multiple=True, help="A project file or glob; repeatable.")
@_json
def run(spec: Path, data_dir: str, projects: tuple[str, ...], *, as_json: bool) -> None:
    """Run the batch SPEC here, without a server."""
    with _exit_codes(), TestBench.local(data_dir, projects=projects or DEFAULT_PROJECTS) as bench:
        _watch(bench, bench.submit(spec), as_json=as_json)


@main.group()
def batch() -> None:
    """Batches of a running service."""


@batch.command()
@click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--watch", is_flag=True, help="Follow the batch to its end.")
@click.option("--idempotency-key", help="Submitting twice with one key makes one batch.")
@_url
@_token
@_json
def submit(
    spec: Path,
    idempotency_key: str | None,
    url: str,
    token: str | None,
    *,
    watch: bool,
    as_json: bool,
) -> None:
    """Submit the batch SPEC."""
    with _exit_codes(), TestBench.connect(url, token) as bench:
        batch_id = bench.submit(read_spec(spec), idempotency_key)
        if watch:
            _watch(bench, batch_id, as_json=as_json)
        else:
            _print({"batch_id": batch_id, "url": f"{url}/v1/batches/{batch_id}"}, as_json=as_json)


@batch.command()
@click.argument("batch_id")
@_url
@_token
@_json
def watch(batch_id: str, url: str, token: str | None, *, as_json: bool) -> None:
    """Follow a batch from its first event to its end."""
    with _exit_codes(), TestBench.connect(url, token) as bench:
        _watch(bench, batch_id, as_json=as_json)


@batch.command("list")
@click.option("--status")
@_url
@_token
@_json
def list_batches(status: str | None, url: str, token: str | None, *, as_json: bool) -> None:
    """List batches, newest first."""
    with _exit_codes():
        params = {"status": status} if status else {}
        page = HttpClient(url, token).request("GET", "/v1/batches", params=params)
        if as_json:
            _print(page, as_json=True)
            return
        for item in page["items"]:
            counts = item["counts"]
            click.echo(
                f"{item['batch_id']}  {item['status']:<10} "
                f"{counts['succeeded']}/{counts['total']} succeeded  "
                f"{strip_controls(item['name'] or '')}"
            )


@batch.command()
@click.argument("batch_id")
@_url
@_token
@_json
def show(batch_id: str, url: str, token: str | None, *, as_json: bool) -> None:
    """Show a batch."""
    with _exit_codes(), TestBench.connect(url, token) as bench:
        found = bench.batch(batch_id)
        if not as_json:
            found = {k: v for k, v in found.items() if k not in {"spec", "variants"}}
        _print(found, as_json=as_json)


@batch.command()
@click.argument("batch_id")
@_url
@_token
@_json
def compare(batch_id: str, url: str, token: str | None, *, as_json: bool) -> None:
    """Compare the variants of a batch."""
    with _exit_codes(), TestBench.connect(url, token) as bench:
        comparison = bench.comparison(batch_id)
        if as_json:
            _print(comparison, as_json=True)
        else:
            print_comparison(comparison, make_console())


@batch.command()
@click.argument("batch_id")
@click.option("--reason", default="cancelled on request", show_default=True)
@_url
@_token
@_json
def cancel(batch_id: str, reason: str, url: str, token: str | None, *, as_json: bool) -> None:
    """Stop a batch."""
    with _exit_codes(), TestBench.connect(url, token) as bench:
        changed = bench.cancel(batch_id, reason)
        _print({"batch_id": batch_id, "changed": changed}, as_json=as_json)


@main.group()
def project() -> None:
    """Projects of a running service."""


@project.command("list")
@_url
@_token
@_json
def list_projects(url: str, token: str | None, *, as_json: bool) -> None:
    """List projects with what they offer and their problems."""
    with _exit_codes():
        page = HttpClient(url, token).request("GET", "/v1/projects")
        if as_json:
            _print(page, as_json=True)
            return
        for item in page["items"]:
            click.echo(f"{item['name']}  {(item['version'] or 'unusable')[:12]}  {item['source']}")
            for problem in item["problems"]:
                click.echo(f"  problem: {strip_controls(problem)}")


@main.command()
@click.argument("config", default="serve_config.yaml", type=click.Path(exists=True, dir_okay=False))
def serve(config: str) -> None:
    """Run the service in the foreground, in a Ray of its own; the same as `serve run CONFIG`."""
    command = demonstration.serve_command(Path(config))
    os.execv(command[0], command)  # noqa: S606 - our own command; signals reach it as they are


@main.command()
@click.option("--config", default="serve_config.yaml", show_default=True)
@click.option("--spec", default="configs/batches/code_repair.yaml", show_default=True)
@click.option("--keep", is_flag=True, help="Stay up until Ctrl-C.")
def demo(config: str, spec: str, *, keep: bool) -> None:
    """Start the service, run an example batch, show what came out, stop everything."""
    with _exit_codes():
        sys.exit(demonstration.run(Path(config), Path(spec), keep=keep))


def _watch(bench: TestBench, batch_id: str, *, as_json: bool) -> None:
    """Follow a batch to its end, print its comparison, exit by its result."""
    if as_json:
        for event in bench.events(batch_id):
            click.echo(json.dumps(event, ensure_ascii=False))
    else:
        console = make_console()
        console.print(f"batch {batch_id} on {bench.where}")
        total = bench.batch(batch_id)["counts"]["total"]
        for _ in follow(bench.events(batch_id), total, console):
            pass
        print_comparison(bench.comparison(batch_id), console)
    ended = bench.batch(batch_id)
    counts = ended["counts"]
    if ended["status"] != "completed" or counts["succeeded"] != counts["total"]:
        sys.exit(EXIT_NOT_ALL)


def _print(value: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(value, ensure_ascii=False))
        return
    for key, item in value.items():
        text = item if isinstance(item, str) else json.dumps(item)
        click.echo(f"{key}: {strip_controls(text)}")


@contextmanager
def _exit_codes() -> Generator[None]:
    """Our errors as one message and the exit code that goes with it."""
    try:
        yield
    except Unavailable as error:
        click.echo(f"error: {strip_controls(error)}", err=True)
        sys.exit(EXIT_UNREACHABLE)
    except (InvalidSpec, InvalidRequest, RequestRefused, NotFound, Conflict) as error:
        click.echo(f"error: {strip_controls(error)}", err=True)
        sys.exit(EXIT_USAGE)
    except WtbError as error:
        click.echo(f"error: {strip_controls(error)}", err=True)
        sys.exit(EXIT_NOT_ALL)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_NOT_ALL)
