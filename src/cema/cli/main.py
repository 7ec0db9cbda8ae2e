"""``cema``: finds the command, imports only what it needs, and turns errors into exit codes.

Commands are loaded on use: ``cema edge run`` must start on a device where torch does not exist.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from cema import __version__
from cema.cli.output import fail
from cema.errors import CemaError, DependencyError

# command -> (module, attribute, extra that it needs)
COMMANDS = {
    "edge": ("cema.cli.edge", "edge", None),
    "serve": ("cema.cli.serve", "serve", "cloud"),
    "bundle": ("cema.cli.bundle", "bundle", "cloud"),
    "device": ("cema.cli.device", "device", "cloud"),
    "group": ("cema.cli.group", "group", "cloud"),
    "update": ("cema.cli.update", "update", "cloud"),
    "demo": ("cema.cli.demo", "demo", "cloud,bench"),
    "doctor": ("cema.cli.doctor", "doctor", None),
}


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, extra = COMMANDS[cmd_name]
        try:
            command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if extra is None or (error.name or "").startswith("cema"):
                raise
            missing = DependencyError(
                f"'cema {cmd_name}' needs {error.name}, which is not installed", hint=f"pip install 'cema[{extra}]'"
            )
            return _unavailable(cmd_name, missing)
        assert isinstance(command, click.Command)
        return command


def _unavailable(name: str, error: DependencyError) -> click.Command:
    @click.command(
        name, help=error.hint, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
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
