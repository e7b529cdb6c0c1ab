"""`quatrain completion`: the script that lets a shell complete verbs, options and names of recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from cyclopts import App


def completion_of(app: App) -> Callable[[Literal["bash", "zsh", "fish"]], int]:
    """The verb for an application."""

    def completion(shell: Literal["bash", "zsh", "fish"]) -> int:
        """Write the script for a shell that completes verbs, options, their choices and names of recipes on Tab.

        bash: put eval "$(quatrain completion bash)" into ~/.bashrc. zsh: write it to a file _quatrain in a folder of
        fpath. fish: write it to ~/.config/fish/completions/quatrain.fish.

        Parameters
        ----------
        shell
            The shell.
        """
        from quatrain.cli.output import show_text

        script = app.generate_completion(shell=shell)
        # Where nothing else fits, bash completes paths.
        show_text(script.replace("complete -F ", "complete -o default -F ").rstrip("\n"))
        return 0

    return completion
