"""The command line. A verb is a module of this folder that has a click command ``command``, and its name in ``VERBS``.

Modules of verbs import torch and whatever needs it inside their functions, so that ``--help`` answers at once.
"""

from __future__ import annotations

import difflib
import io
import logging
import os
import sys
from contextlib import nullcontext, redirect_stdout
from importlib import import_module

import click

from .._version import __version__
from .errors import explain

VERBS = (
    "init",
    "plan",
    "simulate",
    "train",
    "choose",
    "predict",
    "evaluate",
    "generate",
    "export",
    "report",
    "watch",
    "epsilon",
    "audit",
    "demo",
    "study",
    "profile",
    "flower",
    "site",
    "data",
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and (near := difflib.get_close_matches(args[0], VERBS, 2)):
            ctx.fail(f"No such command {args[0]!r}; did you mean {' or '.join(near)}?")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ffalora")
@click.option("--traceback", is_flag=True, help="Show the whole traceback of every error.")
@click.option("--quiet", is_flag=True, help="Print nothing but warnings and errors; every verb takes it, too.")
@click.pass_context
def cli(ctx: click.Context, traceback: bool, quiet: bool) -> None:
    """FFA-LoRA: private fine-tuning of transformers on data that stays where it is.

    Start with `ffalora init FILE` for a table of yours, or with `ffalora demo`. Every verb explains itself: `ffalora
    init -h`.
    """
    ctx.obj = {"traceback": traceback}
    processes = int(os.environ.get("WORLD_SIZE", "1")) if {"RANK", "MASTER_ADDR"} <= os.environ.keys() else 1
    if processes > 1 and ctx.invoked_subcommand not in SHARED_VERBS:
        raise click.UsageError(
            f"{ctx.invoked_subcommand} runs in one process, and torchrun (WORLD_SIZE) started {processes}; start it "
            f"without torchrun. Several processes can share {', '.join(SHARED_VERBS)}"
        )


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 an error that the message tells how to mend, 130 interrupted.

    ``--quiet`` is taken by every verb: nothing is printed but warnings and errors (and what ``--json`` asks for), and
    what is written is written.
    """
    logging.basicConfig(format="%(message)s")  # before a library of ours puts dates before what is said
    given = sys.argv[1:] if arguments is None else list(arguments)
    own = given[: given.index("--")] if "--" in given else given
    wants_traceback, is_quiet = "--traceback" in own, "--quiet" in own
    if is_quiet:
        given = [word for word in own if word != "--quiet"] + given[len(own) :]
        os.environ["TQDM_DISABLE"] = "1"  # read when bars are first imported, here and in processes that are started
    try:
        with redirect_stdout(io.StringIO()) if is_quiet and "--json" not in own else nullcontext():
            status = cli.main(given, prog_name="ffalora", standalone_mode=False)
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
