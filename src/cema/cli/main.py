"""``cema``: finds the command, imports only what it needs, and turns errors into exit codes.

Commands are loaded on use: ``cema edge run`` must start on a device where torch does not exist.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from cema import __version__
from cema.cli.output import fail
from cema.errors import CemaError, DependencyError

# command -> (extra that it needs, its line in the help); it is the attribute of that name in cema.cli.<name>
COMMANDS = {
    "demo": ("cloud,bench", "One cloud and several edges on this machine, with drifting input."),
    "bench": ("cloud,bench", "Measure methods: accuracy, bytes and milliseconds."),
    "serve": ("cloud", "Run the cloud service."),
    "edge": (None, "Predict and adapt on a device."),
    "bundle": ("cloud", "Make what a device runs out of a torch model."),
    "device": ("cloud", "Enrol, list, rotate, pause and revoke devices."),
    "user": ("cloud", "Add, list and revoke operators and readers."),
    "tls": ("cloud", "Make certificates for the cloud and its devices."),
    "group": ("cloud", "List and show groups, switch them off and on."),
    "update": ("cloud", "List, show, take back and carry published updates."),
    "sample": ("cloud", "Delete what devices uploaded."),
    "doctor": (None, "Check this machine; numbered findings with a fix."),
}


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            command = getattr(import_module(f"cema.cli.{cmd_name}"), cmd_name)
        except ModuleNotFoundError as error:
            return _unavailable(cmd_name, _missing(cmd_name, error))
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:  # a command may itself import on use: 'bundle inspect' needs no torch
            raise _missing(ctx.invoked_subcommand or "", error) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _missing(command: str, error: ModuleNotFoundError) -> DependencyError:
    """What to install for ``command``. Raises ``error`` itself if no extra would help: then it is a defect of ours."""
    extra, _ = COMMANDS.get(command, (None, ""))
    if extra is None or (error.name or "").startswith("cema"):
        raise error
    return DependencyError(
        f"'cema {command}' needs {error.name}, which is not installed", hint=f"pip install 'cema[{extra}]'"
    )


def _unavailable(name: str, error: DependencyError) -> click.Command:
    # whatever is asked, --help too, the answer is the error: a help page that exits with 0 would hide it from scripts
    @click.command(
        name, add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
    )
    def command() -> None:
        raise error

    return command


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cema")
def main() -> None:
    """Keep the vision models on edge devices accurate while the world drifts."""


def run() -> None:
    """Entry point: exit code 0, or that of the error (docs/errors.md)."""
    try:
        main(standalone_mode=False)
    except CemaError as error:
        sys.exit(fail(error, as_json="--json" in sys.argv))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
