"""The `wtb` command.

Exit codes: 0 the batch completed and every execution succeeded (scores do not matter), 1 it did
not, 2 usage or a bad spec, 3 the server cannot be reached or cannot take more now.
"""

import os
import sys
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from wtb_core.commands.batches import batch, run
from wtb_core.commands.executions import execution
from wtb_core.commands.options import (
    EXIT_INTERRUPTED,
    EXIT_NOT_ALL,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
)
from wtb_core.commands.projects import project
from wtb_core.commands.pruning import prune
from wtb_core.commands.service import demo, doctor, serve
from wtb_core.display import strip_controls
from wtb_core.errors import TooManyPending, Unavailable, WtbError


class _Main(click.Group):
    """Our errors as one message and the exit code that goes with it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Unavailable, TooManyPending) as error:
            _fail(error, EXIT_UNREACHABLE)
        except WtbError as error:
            _fail(error, EXIT_USAGE)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_NOT_ALL)
        except (OSError, SQLAlchemyError) as error:
            _fail(error, EXIT_NOT_ALL)


def _fail(error: Exception, code: int) -> None:
    click.echo(f"error: {strip_controls(error)}", err=True)
    sys.exit(code)


@click.group(cls=_Main)
@click.version_option(package_name="wtb-serve")
def main() -> None:
    """Batch-test variants of LangGraph workflows."""


for command in (run, batch, execution, project, serve, demo, doctor, prune):
    main.add_command(command)
