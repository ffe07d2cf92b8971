# SPDX-License-Identifier: GPL-2.0-only
"""``pkernfs completion``: scripts that let a shell complete verbs, options and names.

What is offered comes from the parser itself, by typer's protocol. For bash the script is our
own: bash takes a PCI name for several words, because of its colons, and typer's goes by that.
"""

from __future__ import annotations

import enum
from typing import Annotated

import typer

VARIABLE = "_PKERNFS_COMPLETE"

_BASH = f"""\
_pkernfs_completion() {{
    # Words by blanks only: a colon is part of a PCI name.
    local line="${{COMP_LINE:0:COMP_POINT}}" cur words
    read -ra words <<<"$line"
    cur="${{line##*[[:space:]]}}"
    [[ -n $cur ]] || words+=("")
    local IFS=$'\\n'
    COMPREPLY=( $( env COMP_WORDS="$line" COMP_CWORD=$(( ${{#words[@]}} - 1 )) \\
                   {VARIABLE}=complete_bash "$1" 2>/dev/null ) )
    # bash puts them in place of what is behind the last colon.
    if [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then
        local done="${{cur%"${{cur##*:}}"}}"
        COMPREPLY=( "${{COMPREPLY[@]#"$done"}}" )
    fi
}}

complete -o default -F _pkernfs_completion pkernfs
"""


_EXAMPLES = """\b
Examples:
  source <(pkernfs completion bash)
  pkernfs completion fish | source
"""


class Shell(enum.StrEnum):
    """Shells that there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def script(shell: Shell) -> str:
    """The script for a shell."""
    if shell is Shell.BASH:
        return _BASH
    from typer._completion_shared import get_completion_script

    text = get_completion_script(prog_name="pkernfs", complete_var=VARIABLE, shell=shell.value)
    return text.strip() + "\n"


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command("completion", epilog=_EXAMPLES)(completion)


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print a script that lets a shell complete pkernfs: verbs, options, guests, devices."""
    print(script(shell), end="")
