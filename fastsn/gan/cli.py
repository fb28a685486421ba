"""The command ``fastsn``: train, sweep, eval, sample, report and bench.

Exit codes: 0 done (or stopped by SIGTERM or SIGHUP, with everything saved), 1 stopped by a failure
while training (the run's ``events.jsonl`` says which), 2 bad input, with one message and nothing
written, 130 stopped by Ctrl-C, with everything saved.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["main"]

#: Packages of ``fastsn[gan]`` without which no subcommand works.
NEEDED = ("jsonargparse", "yaml", "torchvision", "PIL", "tqdm")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        return _fail(
            f"expected the packages of the GAN harness, got none named {', '.join(missing)}: "
            "pip install 'fastsn[gan]'"
        )
    from jsonargparse import ArgumentError

    from fastsn.gan.config import ConfigError

    parser, commands = _parsers()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["train"], ["sweep"]) and {"-h", "--help"} & {*arguments}:
        from fastsn.gan.usage import usage

        _say(usage(arguments[0], commands[arguments[0]][0]))
        return 0
    arguments = ["--help" if word == "--help_all" else word for word in arguments]
    try:
        arguments = _with_presets(arguments)
        options = parser.parse_args(arguments)
    except (ArgumentError, ConfigError) as error:
        return _fail(_one_message(error))
    return _run(commands[options.command][1], options[options.command])


def _run(command: Any, options: Namespace) -> int:
    from fastsn.gan.config import ConfigError
    from fastsn.gan.data.images import DataError
    from fastsn.gan.run.checkpoint import CheckpointError
    from fastsn.gan.run.folder import RunDirError

    try:
        return command(options)
    except (
        ConfigError,
        DataError,
        RunDirError,
        CheckpointError,
        OSError,
    ) as error:
        return _fail(str(error))


def _fail(message: str) -> int:
    sys.stderr.write(f"fastsn: error: {message}\n")
    return 2


def _one_message(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.replace("Parser key ", "option ").replace("\u200b", "")


def _with_presets(arguments: list[str]) -> list[str]:
    """``--config NAME`` of a preset as the preset's options, for the parser to read."""
    found, words = [], iter(arguments)
    for word in words:
        whole = "=".join([word, *islice(words, 1)]) if word == "--config" else word
        flag, equals, value = whole.partition("=")
        found.append(f"{flag}={_content(value)}" if flag == "--config" and equals else whole)
    return found


def _content(name: str) -> str:
    from fastsn.gan.config import ConfigError, read_yaml
    from fastsn.gan.presets import load_preset

    if not Path(name).is_file():  # a folder may well be called demo
        return load_preset(name).to_yaml()
    if not isinstance(read_yaml(Path(name)), dict):
        raise ConfigError(f"{name}: expected sections such as 'data' and 'train'")
    return name


def _parsers() -> tuple[ArgumentParser, dict[str, tuple[ArgumentParser, Any]]]:
    """The whole, and by name each command's own, with what it calls."""
    from jsonargparse import ArgumentParser

    from fastsn import __version__

    parser = ArgumentParser(
        prog="fastsn",
        description="Trains and looks at the GANs of the BSSN paper.",
        version=f"fastsn {__version__}",
        exit_on_error=False,
    )
    subparsers = parser.add_subcommands(required=True, dest="command")
    commands = {}
    for name, (summary, add_options, command) in COMMANDS.items():
        subparser = ArgumentParser(description=summary, exit_on_error=False)
        add_options(subparser)
        subparsers.add_subcommand(name, subparser, help=summary)
        commands[name] = subparser, command
    return parser, commands


# train


def _config_options(parser: ArgumentParser) -> None:
    from fastsn.gan.config import Config

    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE or PRESET",
        help="such as paper/cifar10_bssn or demo; later options win",
    )
    parser.add_class_arguments(Config, None)


def _train_options(parser: ArgumentParser) -> None:
    _config_options(parser)
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="folder of the run; default: runs/ and a name made of the options",
    )
    parser.add_argument(
        "--resume",
        type=bool,
        default=True,
        help="go on with the run in the folder, if there is one",
    )


def _train(options: Namespace) -> int:
    import traceback

    from fastsn.gan.config import from_dict
    from fastsn.gan.loop.training import EXPECTED, Diverged, Stopped, train
    from fastsn.gan.run.ranks import Ranks

    tree = options.as_dict()
    out, resume = tree.pop("out"), tree.pop("resume")
    tree.pop("config")
    try:
        result = train(from_dict(tree), out, resume=resume)
    except Stopped as error:
        if not isinstance(error.__cause__, (*EXPECTED, Diverged)):
            traceback.print_exception(error.__cause__)
        sys.stderr.write(f"fastsn: stopped at {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("fastsn: interrupted; the same command goes on from the last checkpoint\n")
        return 130
    if result.reason == "SIGINT":
        sys.stderr.write(f"fastsn: saved at step {result.step}; the same command goes on\n")
        return 130
    if Ranks.from_environment().first:
        _say(f"{result.reason} at step {result.step}: {result.path}")
    return 0


# sweep


def _sweep_options(parser: ArgumentParser) -> None:
    from fastsn.gan.sweep.options import add_options

    _config_options(parser)
    add_options(parser)


def _sweep(options: Namespace) -> int:
    from fastsn.gan.sweep.options import sweep

    tree = options.as_dict()
    tree.pop("config")
    return sweep(tree)


# eval


def _source_options(parser: ArgumentParser) -> None:
    from jsonargparse.typing import NonNegativeInt

    parser.add_argument("source", type=str, help="folder of a run, or a checkpoint file")
    parser.add_argument(
        "--best", type=bool, default=False, help="of a run: its best checkpoint, not its last"
    )
    parser.add_argument(
        "--device",
        type=Literal["auto", "cpu", "cuda"],
        default="auto",
        help="cuda where there is one, or one of them",
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of z")


def _eval_options(parser: ArgumentParser) -> None:
    from typing import get_type_hints

    from docstring_parser import parse

    from fastsn.gan.config import DataConfig, EvalConfig

    _source_options(parser)
    parser.add_argument(
        "--images", type=bool, default=False, help="source is a folder of images, not of a run"
    )
    parser.add_argument("--out", type=str | None, default=None, help="JSON file to write, too")
    for section, options in (("data", DataConfig), ("eval", EvalConfig)):
        for option in parse(str(options.__doc__)).params:
            if option.arg_name != "every":
                parser.add_argument(
                    f"--{section}.{option.arg_name}",
                    type=get_type_hints(options)[option.arg_name] | None,
                    default=None,
                    help=f"{option.description} Default: the run's.",
                )


def _eval(options: Namespace) -> int:
    import json

    from fastsn.gan.measure.evaluation import evaluate_source
    from fastsn.gan.run.checkpoint import replace_file

    row = evaluate_source(options.as_dict())
    text = json.dumps(row, indent=2)
    if options.out is not None:
        replace_file(Path(options.out), f"{text}\n".encode())
    _say(text)
    return 0


# sample


def _sample_options(parser: ArgumentParser) -> None:
    from jsonargparse.typing import PositiveInt, restricted_number_type

    zoom = restricted_number_type("Zoom", int, [(">", 0), ("<=", 64)])
    _source_options(parser)
    parser.add_argument(
        "--kind",
        type=Literal["grid", "interpolation", "images", "npz"],
        default="grid",
        help="a grid of samples; a walk in z per row; single PNG files; or one array of all",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="file to write, or folder of the images; default: samples.png, .npz or samples/",
    )
    parser.add_argument("--n", type=PositiveInt | None, default=None, help="of images or npz")
    parser.add_argument("--rows", type=PositiveInt, default=8, help="rows of the picture")
    parser.add_argument("--columns", type=PositiveInt, default=8, help="columns of the picture")
    parser.add_argument("--zoom", type=zoom, default=2, help="pixels of the file per pixel")


def _sample(options: Namespace) -> int:
    from fastsn.gan.measure.sources import sample_source

    _say(str(sample_source(options.as_dict())))
    return 0


# report


def _report_options(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=str, nargs="+", help="folders of runs")
    parser.add_argument("--out", type=str, default="report", help="folder to write")


def _report(options: Namespace) -> int:
    from fastsn.gan.report import report

    _say(str(report([Path(run) for run in options.runs], Path(options.out))))
    return 0


# bench


def _weights_options(parser: ArgumentParser) -> None:
    from fastsn.gan.bench import BenchOptions

    parser.add_class_arguments(BenchOptions, None)


def _bench_weights(options: Namespace) -> int:
    from fastsn.gan.bench import BenchOptions, bench

    _say(bench(BenchOptions(**options.as_dict())))
    return 0


#: Name -> summary, options, command.
COMMANDS: dict[str, tuple[str, Any, Any]] = {
    "train": ("Train a GAN, or go on with a run.", _train_options, _train),
    "sweep": (
        "Train a grid of options and seeds, or go on with it.",
        _sweep_options,
        _sweep,
    ),
    "eval": ("Metrics of a checkpoint or of a folder of images.", _eval_options, _eval),
    "sample": (
        "Samples: a picture, single images or an array; walks in z.",
        _sample_options,
        _sample,
    ),
    "report": ("Curves and samples of runs, as PNG and Markdown.", _report_options, _report),
    "bench": (
        "Time of normalizing all weights of a network with torch's SN, fastsn's SN and BSN.",
        _weights_options,
        _bench_weights,
    ),
}


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
