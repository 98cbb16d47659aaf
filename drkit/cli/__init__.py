"""The command line: parse, call, render.

Commands are found by name and imported only when they run, so that ``drkit --help`` stays quick. This file also holds
the one place where an error becomes a message and an exit code.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from drkit import __version__
from drkit.cli.output import Output, StandardOutput
from drkit.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_USAGE, DrkitError

_OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""Python's own 700 let a command spend a tenth of its start on looking for garbage among what it just imported."""

_COMMANDS = {
    "init": ("drkit.cli.init:init", "Make a new site: folders, keys and an example policy."),
    "demo": ("drkit.cli.demo:demo", "Back up, restore and prove a sample database on throw-away servers."),
    "policy": ("drkit.cli.policy:policy", "Check, show and describe policies."),
    "backup": ("drkit.cli.backup:backup", "Take a backup now."),
    "list": ("drkit.cli.listing:listing", "List artifacts."),
    "show": ("drkit.cli.show:show", "Show one artifact with all its facts."),
    "timeline": ("drkit.cli.timeline:timeline", "Draw which moments can be restored."),
    "check": ("drkit.cli.check:check", "Compare stores, manifests, chain and catalog; say what is missing or late."),
    "report": ("drkit.cli.report:report", "Report how policies stand, by what the catalog knows."),
    "verify": ("drkit.cli.verify:verify", "Read artifacts and compare them with what was signed; needs no server."),
    "restore": ("drkit.cli.restore:restore", "Restore an artifact into an empty database."),
    "drill": ("drkit.cli.drill:drill", "Restore into a throw-away server and prove that the data came back."),
    "drills": ("drkit.cli.drill:drills", "List the drills so far."),
    "evidence": ("drkit.cli.evidence:evidence", "Check signed records offline."),
    "prune": ("drkit.cli.prune:prune", "Remove what the retention does not want, in two steps; say why."),
    "hold": ("drkit.cli.hold:hold", "Keep an artifact whatever the retention says."),
    "release": ("drkit.cli.hold:release", "End the holds on an artifact."),
    "retention": ("drkit.cli.retention:retention", "Look ahead at what a policy's retention will keep."),
    "catalog": ("drkit.cli.catalog:catalog", "Rebuild or export the catalog."),
    "store": ("drkit.cli.store:store", "Find out what a store really does; catch up missing copies."),
    "keys": ("drkit.cli.keys:keys", "Make, list and prove keys."),
    "wal": ("drkit.cli.wal:wal", "What PostgreSQL calls for its log, and the line with which it does."),
    "serve": ("drkit.cli.serve:serve", "Run what is due and ship logs, all the time, until told to stop."),
    "schedule": ("drkit.cli.schedule:schedule", "Show what will run when."),
    "notify": ("drkit.cli.notify:notify", "Test notifications; send what waits."),
    "watch": ("drkit.cli.watch:watch", "Alarm, from another host, about what is absent from the stores."),
    "run": ("drkit.cli.run:run", "List, show and cancel runs."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line helps, and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a first day's work."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry[0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else "; drkit --help lists the commands"
            ctx.fail(f'no such command "{args[0]}"{hint}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[1]) for name, entry in _COMMANDS.items()])


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Keep a common option wherever on the line it was given; the innermost one wins."""
    if value:
        ctx.meta[f"drkit.{param.name}"] = value
    return value


def common_options(command: Any) -> Any:
    """Add the options that every command takes."""
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, callback=_remember, help="Show tracebacks."),
        click.option("--quiet", is_flag=True, expose_value=False, callback=_remember, help="No progress, no messages."),
        click.option(
            "--json", "json", is_flag=True, expose_value=False, callback=_remember, help="Print one JSON document."
        ),
        click.option(
            "--site",
            type=click.Path(path_type=Path),
            expose_value=False,
            callback=_remember,
            help="The site file; default: $DRKIT_SITE, then drkit.yaml here or above.",
        ),
    ):
        command = option(command)
    return command


def output_of(ctx: click.Context) -> Output:
    """Return the output that the common options ask for."""
    return Output(json=bool(ctx.meta.get("drkit.json")), quiet=bool(ctx.meta.get("drkit.quiet")))


def site_option(ctx: click.Context) -> Path | None:
    """Return the site file given on the command line, if one was."""
    site: Path | None = ctx.meta.get("drkit.site")
    return site


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "--version", message="drkit %(version)s")
@common_options
def cli() -> None:
    """Backups of PostgreSQL and MongoDB that are proven to restore.

    Exit codes: 0 done; 1 a bug; 2 wrong usage; 3 configuration; 4 busy; 5 database or its tool; 6 store; 7 no key;
    8 integrity; 9 no way to that moment; 10 catalog; 11 drill failed; 12 problems found; 130 interrupted.
    """


def _prepare_streams() -> None:
    """Give what is said somewhere to go when we were started without a place for it, as by ``>&-``.

    The work is done all the same, and no file of ours becomes descriptor 1 or 2. A standard output that takes no more
    names itself in the error.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_WRONLY)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))
    StandardOutput.install()


def _interrupt(signum: int, frame: object) -> None:
    """Unwind on SIGTERM as on Ctrl-C, so that children, uploads and sandboxes go the same way."""
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of docs/errors.md."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    # What else is installed has no say in what a document may hold, and is not looked for at each start.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    _prepare_streams()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which is what nohup asks for
        signal.signal(signal.SIGHUP, _interrupt)
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    output = Output(json="--json" in flags, quiet="--quiet" in flags)
    status = _run(arguments, output, debug="--debug" in flags)
    with suppress(OSError):
        sys.stdout.flush()
    if argv is None and threading.active_count() == 1:
        _end(status)
    sys.exit(status)


def _end(status: int) -> NoReturn:
    """End the process without taking its modules apart first, which lasts a tenth of a second and frees nothing."""
    atexit._run_exitfuncs()  # noqa: SLF001 - what Python itself calls at its end; there is no public name
    with suppress(OSError):  # whoever read it is gone, which changes nothing in how the command ended
        sys.stderr.flush()
    os._exit(status)


def _run(arguments: list[str], output: Output, *, debug: bool) -> int:
    """Return the exit status; the one broad except beside operations/running."""
    try:
        return cli.main(arguments, prog_name="drkit", standalone_mode=False) or 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        output.usage_error(error)
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        output.error(DrkitError("interrupted"), EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    except DrkitError as error:
        if debug:
            _print_traceback()
        output.error(error, error.exit_code)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last line before the user
        if debug:
            _print_traceback()
        if isinstance(error, OSError) and error.filename == StandardOutput.NAME:
            _say_lost(error)
        else:
            output.bug(error)
        return EXIT_BUG


def _say_lost(error: OSError) -> None:
    """Say that standard output takes no more, and write nothing more to it; a reader that left has what it wanted."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    if not isinstance(error, BrokenPipeError):
        hint = "df   (shows which disk is full; what the command did stands)"
        Output().error(DrkitError(f"standard output cannot be written: {error.strerror}", hints=[hint]), EXIT_BUG)


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()
