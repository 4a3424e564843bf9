"""A command that also has sub-commands: ``train …`` beside ``train bundle …``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

DEFAULT = "run"
_FEW = 2


class DefaultGroup(TyperGroup):
    """A group that runs its command ``run`` when no sub-command is named.

    ``--help`` shows that command's options, or the list of sub-commands where there are many.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command's name before arguments that name no sub-command."""
        asks_for_help = bool(args) and args[0] in self.get_help_option_names(ctx)
        if not (args and args[0] in self.commands) and not (
            asks_for_help and len(self.commands) > _FEW
        ):
            args = [DEFAULT, *args]
        return list(super().parse_args(ctx, args))
