"""The command `vlcal`: flags from signatures, data on stdout, progress on stderr, exit codes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_type_hints

from vlcal import __version__
from vlcal._optional import optional
from vlcal.experiment import Progress

OK, FAILED, USAGE, DATA, INTERRUPTED = 0, 1, 2, 3, 130
ABOUT = "Confidence that can be trusted for CLIP-like models, at any vocabulary size."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: the run failed. 2: usage. 3: a problem with the data given. 130: interrupted, the
    same command goes on where it stopped.
    """
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from here", INTERRUPTED)
    except BrokenPipeError:
        return OK
    except (ValueError, OSError) as error:
        return _fail(str(error), DATA)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        return _fail(str(error), FAILED)


def _main(argv: list[str]) -> int:
    optional("jsonargparse", "cli", "vlcal")
    # imported here, so that a missing extra is one sentence and `--help` stays the only cost
    from vlcal.commands import COMMANDS

    as_json, quiet = (_take(argv, flag) for flag in ("--json", "--quiet"))
    known = {command.__name__: command for command in COMMANDS}
    parser = _parser(known)
    given = parser.parse_args(_normalized(argv, known))
    command = known[given.command]
    options = given[given.command].as_dict() if given.get(given.command) else {}
    for parameter, kind in _groups(command).items():
        flags = {field: options.pop(kind.prefix + field, None) for field in _fields(kind)}
        options[parameter] = kind(**flags)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="vlcal: %(message)s")
    warnings.showwarning = _say_warning
    with _progress(quiet) as progress:
        answer = command(progress, **options)
    print(json.dumps(answer.data, indent=1) if as_json else answer.text)
    return OK


def _parser(commands: dict[str, Callable[..., Any]]) -> Any:
    import jsonargparse

    class ArgumentParser(jsonargparse.ArgumentParser):
        def format_help(self) -> str:
            return _hyphens(super().format_help())

        def format_usage(self) -> str:
            return _hyphens(super().format_usage())

    parser = ArgumentParser(prog="vlcal", description=ABOUT, version=__version__)
    parser.epilog = "Every command also takes --json (data on stdout) and --quiet (no progress)."
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, command in commands.items():
        about = (inspect.getdoc(command) or "").splitlines()[0]
        one = ArgumentParser(description=about)
        groups = _groups(command)
        for kind in groups.values():
            for field, (hint, text) in _fields(kind).items():
                one.add_argument(f"--{kind.prefix}{field}", type=hint, default=None, help=text)
        skip: set[str | int] = {"progress", *groups}
        one.add_function_arguments(command, skip=skip, as_group=False, as_positional=True)
        subcommands.add_subcommand(name, one, help=about)
    return parser


def _groups(command: Callable[..., Any]) -> dict[str, Any]:
    """Parameters of a command that are many flags: a dataclass whose fields, prefixed, are such."""
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    return {p.name: p.annotation for p in parameters if dataclasses.is_dataclass(p.annotation)}


def _fields(kind: Any) -> dict[str, tuple[Any, str]]:
    """Type and description of every field of a group."""
    hints = get_type_hints(kind)
    about = "validation images: " if kind.prefix else ""
    return {
        each.name: (hints[each.name], about + each.metadata["help"])
        for each in dataclasses.fields(kind)
    }


def _hyphens(text: str) -> str:
    """Flags as people type them: hyphens, and switches without a value."""
    text = re.sub(r"--[a-z]+(_[a-z]+)+", lambda flag: flag[0].replace("_", "-"), text)
    # a description that stands in the same line stays in its column
    text = re.sub(r" \{true,false\}( {2,})(?=\S)", lambda found: " " * len(found[0]), text)
    return text.replace(" {true,false}", "")


def _take(argv: list[str], flag: str) -> bool:
    """Whether the flag is there; it is taken out."""
    found = flag in argv
    argv[:] = [word for word in argv if word != flag]
    return found


def _normalized(argv: list[str], commands: dict[str, Callable[..., Any]]) -> list[str]:
    """Hyphens and underscores alike, `--set key=value`, switches without a value, flags in front.

    What a command requires may also be written as a flag: `tune --tuner coop` is `tune coop`.
    """
    switches, required = set(), set()
    if argv and argv[0] in commands:
        parameters = inspect.signature(commands[argv[0]], eval_str=True).parameters.values()
        switches = {f"--{p.name}" for p in parameters if p.annotation is bool}
        required = {f"--{p.name}" for p in parameters if p.default is p.empty} - {"--progress"}
        required -= {f"--{name}" for name in _groups(commands[argv[0]])}
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word == "--set":
            key, equals, value = next(rest, "").partition("=")
            # to the parser a dot in a key means a dictionary in the dictionary
            words.append("--set." + key.replace(".", ":") + equals + value)
            continue
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            word = flag.replace("-", "_").replace("__", "--", 1) + equals + value
        flag, equals, value = word.partition("=")
        if flag in required:
            words.insert(1, value if equals else next(rest, ""))
            continue
        words.append(word + "=true" if word in switches else word)
    return words


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """A bar per stage on stderr; nothing where stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    console = optional("rich.console", "cli", "vlcal").Console(stderr=True)
    bars = optional("rich.progress", "cli", "vlcal").Progress(console=console)
    tasks: dict[str, Any] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks or bars.tasks[tasks[stage]].completed > done:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done)

    with bars:
        yield report


def _say_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"vlcal: {message}", file=sys.stderr)


def _fail(sentence: str, code: int) -> int:
    print(f"vlcal: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
