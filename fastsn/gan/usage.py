"""The short help of ``fastsn train`` and ``fastsn sweep``: an option per line, and the presets."""

from __future__ import annotations

import textwrap
from argparse import SUPPRESS
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from fastsn.gan.config import Config
from fastsn.gan.presets import preset_words

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["usage"]

WIDTH = 100


def usage(command: str, parser: ArgumentParser) -> str:
    """For people, in less than 80 lines: the beginning of what the parser knows of each option."""
    sections = {f"--{name}" for name in vars(Config())}
    actions = [action for action in parser._actions if action.dest != "help"]
    actions = [action for action in actions if not sections & {*action.option_strings}]
    # The command's own options come first, and then those of the sections.
    lines = [_line(*_described(one)) for one in sorted(actions, key=lambda one: "." in one.dest)]
    own = sum("." not in action.dest for action in actions)
    lines.insert(own, _line("--help_all", "every option with its whole description"))
    head = [f"usage: fastsn {command} [--config=...] [--OPTION=VALUE ...]", ""]
    presets = textwrap.wrap(f"presets: {preset_words()}", WIDTH)
    return "\n".join([*head, *lines, "", *presets])


def _described(action: Any) -> tuple[str, str]:
    """``--train.steps=100000`` and its description, with the choices that it does not name."""
    name, default = action.option_strings[0], action.default
    if default != SUPPRESS:
        value = (action.metavar or "") if default in (None, []) else default
        name += f"={str(value).lower() if isinstance(value, bool) else value}"
    text, kind = str(action.help), getattr(action, "_typehint", None)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if not all(str(choice) in text for choice in choices):
        text = f"{text} ({', '.join(map(str, choices))})"
    return name, text


def _line(name: str, said: str) -> str:
    room = WIDTH - 36
    return f"  {name:<32}  {textwrap.shorten(said, room, placeholder=' ...')}"
