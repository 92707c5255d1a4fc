"""The command line. A verb is a module of this folder that has a click command ``command``, and its name in ``VERBS``.

Modules of verbs import torch and whatever needs it inside their functions, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from .._version import __version__
from .errors import explain

VERBS = (
    "init",
    "simulate",
    "train",
    "demo",
    "generate",
    "evaluate",
    "predict",
    "export",
    "watch",
    "report",
    "data",
    "epsilon",
    "plan",
    "audit",
    "study",
    "profile",
    "flower",
    "schema",
    "info",
)
#: Verbs whose work the processes of one torchrun share.
SHARED_VERBS = ("simulate", "train", "demo")


class _Verbs(click.Group):
    """Commands by name, each imported when it is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return import_module(f".{cmd_name}", __name__).command if cmd_name in VERBS else None


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ffalora")
@click.option("--traceback", is_flag=True, help="Show the whole traceback of every error.")
@click.pass_context
def cli(ctx: click.Context, traceback: bool) -> None:
    """FFA-LoRA: private fine-tuning of transformers on data that stays where it is.

    Start with `ffalora demo`. Every verb explains itself: `ffalora simulate --help`.
    """
    ctx.obj = {"traceback": traceback}
    processes = int(os.environ.get("WORLD_SIZE", "1")) if {"RANK", "MASTER_ADDR"} <= os.environ.keys() else 1
    if processes > 1 and ctx.invoked_subcommand not in SHARED_VERBS:
        raise click.UsageError(
            f"{ctx.invoked_subcommand} runs in one process, and torchrun (WORLD_SIZE) started {processes}; start it "
            f"without torchrun. Several processes can share {', '.join(SHARED_VERBS)}"
        )


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 an error that the message tells how to mend, 130 interrupted."""
    wants_traceback = "--traceback" in (sys.argv[1:] if arguments is None else arguments)
    try:
        status = cli.main(arguments, prog_name="ffalora", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        message = None if wants_traceback else explain(error)
        if message is None:
            raise
        click.echo(f"error: {message}", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
