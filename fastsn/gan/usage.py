"""The short help of ``fastsn train`` and ``fastsn sweep``: an option per line, and the presets."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse

from fastsn.gan.config import Config
from fastsn.gan.presets import preset_words
from fastsn.gan.sweep.options import SweepOptions

__all__ = ["usage"]

WIDTH = 100
#: A line of a command: its own options.
OWN = {
    "train": {
        "--config=FILE or PRESET": "options of a YAML file or a preset; later options win",
        "--out=FOLDER": "of the run; default: runs/ and a name made of the options",
        "--resume=false": "refuse a run that is there, instead of going on with it",
        "--print_config": "print all options as YAML, and end",
        "--help_all": "every option with its whole description",
    },
}
OWN["sweep"] = {
    "--config=FILE or PRESET": OWN["train"]["--config=FILE or PRESET"],
    "--vary=OPTION=VALUE,VALUE": "an option and its values; several make a grid",
}


def usage(command: str) -> str:
    """For people, in less than 80 lines."""
    lines = [f"usage: fastsn {command} [--config=...] [--OPTION=VALUE ...]", ""]
    own = dict(OWN[command])
    if command == "sweep":
        own |= {f"--{name}": said for name, said in _described(SweepOptions()).items()}
        own["--help_all"] = OWN["train"]["--help_all"]
    lines += [_line(name, said) for name, said in own.items()]
    for section, options in vars(Config()).items():
        said = {f"--{section}.{name}": text for name, text in _described(options).items()}
        lines += [_line(name, text) for name, text in said.items()]
    lines += ["", *textwrap.wrap(f"presets: {preset_words()}", WIDTH)]
    return "\n".join(lines)


def _described(options: Any) -> dict[str, str]:
    """``steps=100000`` and the beginning of its description."""
    kinds = get_type_hints(type(options))
    found = {
        param.arg_name: param.description for param in parse(str(type(options).__doc__)).params
    }
    described = {}
    for option in dataclasses.fields(options):
        value = getattr(options, option.name)
        shown = "" if value is None else str(value).lower() if value is True else str(value)
        if value is False:
            shown = "false"
        text = " ".join((found[option.name] or "").split())
        choices = get_args(kinds[option.name]) if get_origin(kinds[option.name]) is Literal else ()
        if choices and not all(str(choice) in text for choice in choices):
            text = f"{text} ({', '.join(map(str, choices))})"
        described[f"{option.name}={shown}"] = text
    return described


def _line(name: str, said: str) -> str:
    room = WIDTH - 36
    return f"  {name:<32}  {textwrap.shorten(said, room, placeholder=' ...')}"
