"""The command `abcfx`: parses arguments, runs one command, turns errors into one readable message.

Each command is a module of this room with a `COMMAND`, which stands in `COMMANDS`. No other room of the library prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version

from rich.console import Console

from abcfx.cli import audit_command, checks, demo, growth_checks, hyper_connections, report, solve, verify
from abcfx.cli.output import command_console
from abcfx.cli.shared import Command
from abcfx.errors import AbcfxError
from abcfx.support.figures import check_target

COMMANDS: tuple[Command, ...] = (
    report.COMMAND,
    audit_command.COMMAND,
    *checks.COMMANDS,
    hyper_connections.COMMAND,
    growth_checks.COMMAND,
    solve.COMMAND,
    verify.COMMAND,
    demo.COMMAND,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of the program `abcfx`, print what it finds, and turn an error into a readable message.

    Args:
        argv: the words of the command line after `abcfx`; those of this process if None.

    Returns:
        The exit status: 0 for success, which for a check means PASS; 1 otherwise; 2 for wrong usage.
    """
    arguments = _parser().parse_args(argv)
    errors = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    try:
        command: Command = arguments.command
        with command_console(arguments.json) as console:
            if getattr(arguments, "plot", None) is not None:
                check_target("--plot", arguments.plot)  # now, not after a long run
            passed = command.run(arguments, console)
        return 1 if passed is False else 0
    except KeyboardInterrupt:
        errors.print("abcfx: interrupted")
        return 130
    except Exception as error:  # the user's own model or file may raise anything; --debug shows the traceback
        if arguments.debug:
            raise
        kind = "" if isinstance(error, AbcfxError) else f"{type(error).__name__}: "
        errors.print(f"abcfx: {kind}{error}")
        if kind:
            errors.print("  --debug shows where")
        return 1


def _parser() -> argparse.ArgumentParser:
    """Make the argument parser of the command `abcfx`, with a subparser for each of its commands."""
    parser = argparse.ArgumentParser(prog="abcfx", description="Hyperparameters that hold at every width of a model.")
    parser.add_argument("--version", action="version", version=f"abcfx {version('abcfx')}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON and nothing else")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        own = commands.add_parser(
            command.name,
            parents=[common],
            help=command.help.partition("\n")[0],
            description=command.help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(own)
        own.set_defaults(command=command)
    return parser
