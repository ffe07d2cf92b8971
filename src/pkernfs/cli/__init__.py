# SPDX-License-Identifier: GPL-2.0-only
"""The command line: verbs only, the work is elsewhere.

Every module of this package defines ``register(app)``, which adds its verbs. Only
the module of the verb that was typed is imported: on the way back to a paused
guest the start of the interpreter counts. For the same reason ``pkernfs resume``
without options goes past the parser.
"""

from __future__ import annotations

import sys

from pkernfs.errors import PkernfsError

# What typing.TYPE_CHECKING is, for type checkers: importing typing takes its time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    import typer

#: Which module of this package defines a verb.
VERBS = {
    "make": "store",
    "ls": "store",
    "check": "store",
    "dump": "store",
    "doctor": "host",
    "reserve": "reserve",
    "mount": "mount",
    "watchdog": "host",
    "vm": "vm",
    "device": "device",
    "update": "update",
    "resume": "update",
    "report": "update",
    "completion": "completion",
    "lab": "lab",
}


def build_app(verb: str | None = None) -> typer.Typer:
    """The parser, with the module of ``verb`` only, or with all of them.

    :param verb: the verb that will run; None or an unknown one registers every verb.
    """
    import importlib

    import typer

    app = typer.Typer(
        name="pkernfs",
        help="Replace the kernel of a hypervisor under its running virtual machines.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def options(
        debug: bool = typer.Option(False, "--debug", help="Show tracebacks of errors."),
        version: bool = typer.Option(
            False, "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ) -> None:
        """Replace the kernel of a hypervisor under its running virtual machines."""

    modules = [VERBS[verb]] if verb in VERBS else sorted(set(VERBS.values()))
    for module in modules:
        importlib.import_module(f"pkernfs.cli.{module}").register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from pkernfs import __version__

        print(f"pkernfs {__version__}")
        sys.exit(0)


def _verb(arguments: Sequence[str]) -> str | None:
    return next((word for word in arguments if not word.startswith("-")), None)


def report_error(error: PkernfsError) -> None:
    """Print an expected failure the way every verb does: what failed, then the hint."""
    print(f"pkernfs: {error.what}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def say_waits(text: str) -> None:
    """Say for whom this command waits: nothing that belongs into its output."""
    print(f"pkernfs: {text}", file=sys.stderr, flush=True)


def _run(arguments: list[str], own: list[str]) -> None:
    if arguments == ["resume"]:
        from pkernfs.update.early import begin

        early = begin()
        from pkernfs.cli.resume import resume

        sys.exit(resume(early=early))
    build_app(_verb(own))(arguments, prog_name="pkernfs")


def _report_os_error(error: OSError) -> None:
    """Say what the system refused. What nobody reads any more is no error to talk about."""
    import os

    # Python flushes once more when it ends, into what can't be written.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if isinstance(error, BrokenPipeError):
        return
    what = error.strerror or str(error)
    hint = "--debug shows where"
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        hint = "run it as root"
    report_error(PkernfsError(f"{error.filename}: {what}" if error.filename else what, hint))


def _run_and_flush(arguments: list[str], own: list[str]) -> None:
    """Run a verb; an output that can't be written is an error of this call, not of the exit."""
    try:
        _run(arguments, own)
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


def main() -> None:
    """Entry point of the ``pkernfs`` command."""
    arguments = sys.argv[1:]
    # Words behind "--" belong to a guest or a lab command, --debug there is not ours.
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        _run_and_flush(arguments, own)
    except PkernfsError as error:
        if "--debug" in own:
            raise
        report_error(error)
        sys.exit(error.status)
    except OSError as error:
        if "--debug" in own:
            raise
        _report_os_error(error)
        sys.exit(1)
