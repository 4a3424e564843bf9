"""A command that also has sub-commands: ``train …`` beside ``train bundle …``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

DEFAULT = "default"
_FEW = 2


class DefaultGroup(TyperGroup):
    """A group that is its command ``default`` where no sub-command is named.

    ``--help`` shows that command's options, or the list of sub-commands where there are many.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.default: Any = self.commands.pop(DEFAULT)
        """What runs without a sub-command; it goes by the group's name."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """A context of the default command, unless a word stands where a sub-command would."""
        first = args[0] if args else ""
        asks_for_list = first in ("-h", "--help") and len(self.commands) > _FEW
        names_command = bool(first) and not first.startswith("-") and "=" not in first
        chosen: Any = super() if asks_for_list or names_command else self.default
        return chosen.make_context(info_name, args, parent=parent, **extra)
