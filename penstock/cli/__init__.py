"""The command `penstock`. It must not know the broker, and it starts workers only as other processes."""

import sys
from typing import NoReturn

import click

from penstock.cli.batch import batch
from penstock.cli.budgets import budgets
from penstock.cli.cache import cache
from penstock.cli.dead_letters import dead
from penstock.cli.deployment import DEPLOYMENT
from penstock.cli.jobs import jobs
from penstock.cli.reconcile import reconcile
from penstock.cli.retention import purge
from penstock.cli.submission import submit
from penstock.cli.usage import usage
from penstock.errors import JobError, PenstockError

FAILED = 1
USAGE = 2
TROUBLES = {
    "42P01": "Penstock's tables are not there; run `penstock migrate`",
    "42703": "its tables are older than this code; run `penstock migrate`",
    "42501": "{reason}; connect as the owner of the tables, see docs/isolation.md",
    "55P03": "others hold what this needs: {reason}; this step changed nothing, try again",
    "40P01": "others held what this needed while they waited for it; this step changed nothing, try again",
    "25P03": "it was ended since it took too long between two statements; this step changed nothing, try again",
    "53300": "it has no connection left; try again, or raise max_connections",
}
"""What is wrong, by the SQLSTATE that Postgres gives, and what to do."""


def main() -> None:
    """Run the command; an error is one line that names the thing, the reason and the cure."""
    try:
        commands(prog_name="penstock", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(USAGE)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f". See `{context.command_path} --help`." if context else ""
        message = " ".join(error.format_message().split())
        fail(message.rstrip(".") + hint if hint else message, error.exit_code)
    except click.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except PenstockError as error:
        fail(str(error), FAILED if isinstance(error, JobError) else USAGE)
    except Exception as error:
        trouble = database_trouble(error)
        if trouble is None:
            raise
        fail(trouble, USAGE)


def fail(message: str, code: int) -> NoReturn:
    """End with one line on standard error."""
    click.echo(f"penstock: {message}", err=True)
    sys.exit(code)


def database_trouble(error: Exception) -> str | None:
    """Say what is wrong with Postgres and what to do, or None where it is not Postgres."""
    from sqlalchemy.exc import DBAPIError, OperationalError

    from penstock.store.db import is_gone

    if not isinstance(error, DBAPIError):
        return None
    reason = next(iter(str(error.orig).splitlines()), type(error.orig).__name__)
    state = getattr(error.orig, "sqlstate", None) or ""
    if state in TROUBLES:
        return "Postgres: " + TROUBLES[state].format(reason=reason)
    if not isinstance(error, OperationalError):
        return None
    if not is_gone(error):
        return f"Postgres: {reason}; mend that, and try again"
    return f"Postgres cannot be reached: {reason}; start it (`penstock up`), or correct PENSTOCK_DATABASE_URL"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="penstock")
def commands() -> None:
    """AI requests as jobs: submit them, watch them, and run the workers that answer them.

    \b
    penstock demo                                        see all of it on the documents in samples/
    penstock up                                          run everything here until Ctrl-C
    penstock submit report.pdf --tenant acme --wait      have a document summarised
    penstock batch run night-7 archive/ --tenant acme    have a folder summarised, at a price that is known before
    penstock jobs list --tenant acme                     what became of it
    penstock dead list                                   what did not work
    penstock usage --tenant acme                         what it has spent, and what is left of its budgets
    """  # noqa: D301 - click reads the backspace


for command in (submit, batch, jobs, dead, usage, budgets, reconcile, cache, purge, *DEPLOYMENT):
    commands.add_command(command)
