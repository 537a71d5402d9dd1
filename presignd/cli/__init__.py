"""The commands: the only code that parses arguments, sets up logging and ends with an exit code.

A command's module is imported when the command is called, so help and completion stay fast.
"""

import inspect
import io
import sys
from importlib import import_module
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from presignd import __version__
from presignd.cli import streams
from presignd.cli.guard import UNAWAITED, guarded, leave, print_lines

COMMANDS = {
    "demo": (
        "presignd.cli.demo:demo_command",
        "Try it: a real S3 server, a folder to drop files into, links.",
    ),
    "init": ("presignd.cli.init:init_command", "Ask a few questions, write the configuration, check it."),
    "run": ("presignd.cli.run:run_command", "Run the daemon: watch folders, upload files, make links."),
    "check": ("presignd.cli.check:check_command", "Check each part of the setup, with real requests."),
    "put": ("presignd.cli.put:put_command", "Upload files now and print their links."),
    "status": ("presignd.cli.status:status_command", "Show the queue, or where one file stands."),
    "wait": ("presignd.cli.wait:wait_command", "Wait until files have their links."),
    "links": ("presignd.cli.links:links_command", "Print the links made so far, or follow new ones."),
    "link": ("presignd.cli.link:link_command", "Make a link for an uploaded file."),
    "unlink": ("presignd.cli.link:unlink_command", "Revoke stable links."),
    "verify": ("presignd.cli.verify:verify_command", "Compare files with what the store holds now."),
    "retry": ("presignd.cli.short_commands:retry_command", "Put quarantined files back into the queue."),
    "web": ("presignd.cli.short_commands:web_command", "Print an address that opens the status page."),
    "webhook": ("presignd.cli.webhook:app", "Try a webhook, or switch it on again."),
    "health": (
        "presignd.cli.short_commands:health_command",
        "Show by the exit code whether the daemon works.",
    ),
    "broker": ("presignd.cli.broker:app", "Sign requests for uploaders without keys, and make their tokens."),
    "config": ("presignd.cli.config:config_command", "Show the effective configuration and where it came from."),
}
"""Each command by name: where its function is, and its line in the help."""


WRONG_USAGE = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])
"""ClickException: of click, or of the copy of click that typer ships."""


class LazyGroup(TyperGroup):
    """Lists every command with its line in ``COMMANDS``, and imports only the one that is called."""

    def main(self, *args: Any, standalone_mode: bool = True, **how: Any) -> Any:  # noqa: ARG002 - there is one way
        """Run, and end the process. Usage errors are printed redacted: an argument may be a token or a signed URL."""
        try:
            sys.exit(super().main(*args, **how | {"standalone_mode": False}))
        except WRONG_USAGE as wrong:
            _print_usage_error(wrong)
            sys.exit(wrong.exit_code)
        except OSError as problem:  # from the help or the version; ``guarded`` handles the commands' own
            raise streams.not_written(problem) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the placeholder of the command in ``args`` by the command itself."""
        if args and args[0] in COMMANDS:
            self.add_command(load(args[0]), args[0])
        return super().resolve_command(ctx, args)


def _print_usage_error(wrong: Any) -> None:
    output = io.StringIO()
    wrong.show(output)
    print_lines(output.getvalue().splitlines(), level="error")


def load(name: str) -> Any:
    """Import one command and return it as typer runs it, guarded (``presignd.cli.guard``)."""
    module, _, function = COMMANDS[name][0].partition(":")
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    command = getattr(import_module(module), function)
    if isinstance(command, typer.Typer):  # a group: its commands are guarded already
        return typer.main.get_command(command)
    alone.command(name, help=help_of(command), **getattr(command, "settings", {}))(guarded(command))
    return typer.main.get_command(alone)


def help_of(command: Any) -> str:
    """Return a command's docstring as its help; the example keeps its lines, so that it can be copied."""
    return inspect.cleandoc(command.__doc__ or "").replace("\n\nExample:", "\n\n\b\nExample:")


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: presignd demo",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"presignd {__version__}")
        raise typer.Exit


@app.callback()
def _presignd(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Drop a file in a folder, get a link.

    Watches folders, uploads each complete file straight to S3-compatible storage by a presigned PUT,
    verifies it, and issues a presigned GET link.
    """


def _placeholder() -> None:
    """Stands for a command that is not imported yet."""


for _name, (_where, _help) in COMMANDS.items():
    app.command(_name, help=_help)(_placeholder)


def main() -> None:
    """Run the ``presignd`` command."""
    streams.open_standard_streams()
    streams.escape_what_stdout_lacks()
    try:
        guarded(app)(prog_name="presignd")  # redacts the traceback of a command that fails to import, too
    except SystemExit as end:
        if UNAWAITED.is_set():
            leave(end.code)
        raise
