"""The commands that run a part of Penstock here. It must not know how that part works."""

import os
import sys
from pathlib import Path

import click


def start(module: str, *arguments: str) -> None:
    """Become another program of this deployment, found from the root of the repository or the image."""
    if not Path("workers").is_dir():
        raise click.ClickException("there is no workers/ here; run this in the root of the repository or of the image")
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


@click.command()
@click.option("--keep", is_flag=True, help="Stay up afterwards and print Flower's address.")
def demo(*, keep: bool) -> None:
    """Summarise the documents in samples/ for three tenants, and show what it cost."""
    start("workers", "demo", *(["--keep"] if keep else []))


@click.command()
def up() -> None:
    """Run Postgres, Redis, the simulator, all pools, feeder, upkeep and Flower until Ctrl-C."""
    start("workers", "up")


@click.command()
@click.argument("role")
@click.option("--concurrency", type=click.IntRange(min=1), help="Jobs in flight; the tier's own if not given.")
def worker(role: str, concurrency: int | None) -> None:
    """Run one worker: the pool of a tier, or `upkeep`.

    \b
    penstock worker small
    penstock worker upkeep
    """  # noqa: D301 - click reads the backspace
    start("workers.worker", role, *(["--concurrency", str(concurrency)] if concurrency else []))


@click.command()
def feeder() -> None:
    """Run the feeder, which sends the messages of rows whose turn has come."""
    start("workers.feeder")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def flower(arguments: tuple[str, ...]) -> None:
    """Run Flower with config/flowerconfig.py; further arguments are Flower's own."""
    start("celery", "-A", "workers.flower", "flower", "--conf=config/flowerconfig.py", *arguments)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulator(arguments: tuple[str, ...]) -> None:
    """Run the simulated provider; see `penstock simulator --help`."""
    os.execv(sys.executable, [sys.executable, "-m", "penstock.providers.simulator", *arguments])


@click.command()
@click.option("--contract", is_flag=True, help="No older version runs any more: finish what waits for that.")
def migrate(*, contract: bool) -> None:
    """Bring the schema of Postgres to the newest version, as far as code of the version before can go on beside it.

    \b
    penstock migrate               before the new version is started
    penstock migrate --contract    when the last process of the old one has stopped
    """  # noqa: D301 - click reads the backspace
    from penstock.settings import load_settings
    from penstock.store.db import sync_engine
    from penstock.store.schema import migrate as bring_up

    engine = sync_engine(load_settings().require_database_url())
    waiting = bring_up(engine, contract=contract)
    engine.dispose()
    if waiting:
        click.echo(
            f"the schema is ready for this version; {', '.join(waiting)} must wait until no older one runs: "
            "then `penstock migrate --contract`"
        )
    else:
        click.echo("the schema is up to date")


@click.command()
def check() -> None:
    """Check the configuration and the prompts as a pool does when it starts."""
    from penstock.configuration import read_configuration
    from penstock.settings import load_settings

    configuration = read_configuration(load_settings())
    catalogue, prompts = configuration.catalogue, configuration.prompts
    click.echo(
        f"{len(catalogue.tiers)} tiers, {len(catalogue.deployment_names)} deployments, "
        f"{len(list(prompts))} prompt versions: all of it holds together"
    )


DEPLOYMENT = (demo, up, worker, feeder, flower, simulator, migrate, check)
