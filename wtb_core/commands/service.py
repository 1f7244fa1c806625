"""`wtb serve`, `wtb demo`, `wtb doctor`."""

import os
import sys
from pathlib import Path

import click

from wtb_core import demo as demonstration
from wtb_core import doctor as diagnosis
from wtb_core.commands.options import EXIT_NOT_ALL, json_option, url_option
from wtb_core.data import DataDir, hold
from wtb_core.display import make_console, strip_controls, to_json
from wtb_core.errors import InvalidRequest, ProjectError
from wtb_core.projects import read_project_file
from wtb_core.serving import ServeConfig, find_shadow, is_free, read_config, serve_command
from wtb_core.testbench import DEFAULT_PROJECTS
from wtb_core.tokens import resolve_tokens

_config_argument = click.argument(
    "config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
_data_dir_option = click.option(
    "--data-dir", metavar="DIR", help="Where batches, events and files are kept."
)


@click.command()
@_config_argument
@click.option("--host", help="Where to listen, instead of the config's.")
@click.option("--port", type=click.IntRange(1, 65535), help="The port, instead of the config's.")
@click.option(
    "--project", "projects", metavar="GLOB", multiple=True, help="Instead of the config's."
)
@_data_dir_option
def serve(
    config: Path | None,
    host: str | None,
    port: int | None,
    projects: tuple[str, ...],
    data_dir: str | None,
) -> None:
    """Run the service in the foreground, in a Ray of its own, until Ctrl-C.

    CONFIG is a Serve config; by default ./serve_config.yaml, else one that serves the projects in
    this folder and in those below.
    """
    chosen = read_config(config)
    if host is not None or port is not None or projects or data_dir is not None:
        chosen = chosen.change(host=host, port=port, projects=projects, data_dir=data_dir)
    _refuse_what_cannot_work(chosen)
    data = DataDir(chosen.data_dir).create()
    with hold(data.path / "serve.lock", "service", inheritable=True):
        _introduce(chosen)
        command = serve_command(chosen.write(chosen.data_dir))
        sys.stdout.flush()
        os.execv(command[0], command)  # noqa: S606 - our own command; signals reach it as they are


@click.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="As for serve.")
@click.option(
    "--spec",
    default="configs/batches/code_repair.yaml",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
)
@click.option("--keep", is_flag=True, help="Stay up until Ctrl-C.")
def demo(config: Path | None, spec: Path, *, keep: bool) -> None:
    """Start the service, run an example batch, show what came out, stop everything."""
    if not spec.is_file():
        raise InvalidRequest(
            "--spec",
            f"there is no {spec} here; the example is part of the repository, not of the package: "
            "run `wtb demo` in a clone, or `wtb serve` with a project of your own",
        )
    sys.exit(demonstration.run(read_config(config), spec, keep=keep))


@click.command()
@_config_argument
@_data_dir_option
@url_option
@click.option(
    "--audit",
    metavar="PROJECT",
    type=click.Path(exists=True, path_type=Path),
    help="Attack this project's isolation instead; exit code 1 when an attack gets out.",
)
@click.option(
    "--network/--no-network", default=False, help="Whether the attacking execution has one."
)
@json_option
def doctor(
    config: Path | None,
    data_dir: str | None,
    url: str,
    audit: Path | None,
    *,
    network: bool,
    as_json: bool,
) -> None:
    """Say what this machine offers and what is wrong, in plain words.

    CONFIG is chosen as for `wtb serve`. Exit code 1 when there is a problem; warnings are none.
    """
    if audit is not None:
        _audit(audit, config, data_dir, network=network, as_json=as_json)
        return
    findings = diagnosis.diagnose(config, data_dir, url)
    if as_json:
        click.echo(to_json({"checks": [finding._asdict() for finding in findings]}))
    else:
        diagnosis.print_findings(findings, make_console())
    if any(finding.state == "problem" for finding in findings):
        sys.exit(EXIT_NOT_ALL)


def _audit(
    project: Path, config: Path | None, data_dir: str | None, *, network: bool, as_json: bool
) -> None:
    place = Path(data_dir) if data_dir is not None else read_config(config).data_dir
    report = diagnosis.audit_project(project, place.absolute(), network=network)
    if as_json:
        click.echo(to_json(diagnosis.describe_audit(report)))
    else:
        diagnosis.print_audit(report, make_console())
    if report.allowed:
        sys.exit(EXIT_NOT_ALL)


def _refuse_what_cannot_work(config: ServeConfig) -> None:
    resolve_tokens(config.tokens)
    if not is_free(config.host, config.port):
        raise click.ClickException(
            f"port {config.port} on {config.host} is taken, "
            f"{diagnosis.describe_service(config.url)}; choose another with --port"
        )
    shadow = find_shadow(Path.cwd())
    if shadow is not None:
        raise click.ClickException(
            f"{shadow} hides a package of WTB Serve; start in another folder"
        )


def _introduce(config: ServeConfig) -> None:
    click.echo(f"API       {config.url}/v1 once it is ready: {config.url}/readyz")
    click.echo(f"data      {config.data_dir}")
    click.echo(f"config    {config.path}")
    found = config.find_projects()
    for path in found:
        click.echo(f"project   {strip_controls(_describe_project(path))}")
    if not found:
        looked = ", ".join(config.patterns)
        click.echo(f"project   none yet; looking for {looked} in {config.root}")
    if config.patterns == list(DEFAULT_PROJECTS):
        click.echo("          changed and new projects are picked up by the next batch")


def _describe_project(path: Path) -> str:
    try:
        return f"{path} ({read_project_file(path).definition.name})"
    except ProjectError as error:
        return f"{path}: {'; '.join(error.problems)}"
