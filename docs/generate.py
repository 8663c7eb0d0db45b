"""Write the pages of the reference that come from the code: commands.md and settings.md.

    .venv/bin/python docs/generate.py

tests/test_docs.py fails when a page differs from what its function returns.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from inspect import cleandoc, getdoc
from itertools import compress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout comes before an installed package

import click

from predictions import errors, settings
from predictions.cli import exits
from predictions.cli.main import COMMANDS, cli

DOCS = Path(__file__).resolve().parent
COMMAND = ".venv/bin/python docs/generate.py"
GENERATED = f"This page is generated from the code by `{COMMAND}`; do not edit it."
# How the page writes the bounds of JSON Schema.
BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minItems": "at least {}",
    "pattern": "`{}`",
}


def commands_page() -> str:
    """Return the text of commands.md."""
    group = click.Context(cli, info_name="predictions")
    links = [(f"[`{name}`](#predictions-{name})", summary) for name, summary in COMMANDS.items()]
    blocks = ["# Commands", GENERATED, *_command(group), _table(("command", "summary"), links)]
    for name in COMMANDS:
        blocks += _command_section(group, name, "##")
    codes = [(_code(code), *rest) for code, *rest in sorted(_exit_codes())]
    return _page([*blocks, "## Exit codes", _table(("code", "meaning", "exception in `predictions.errors`"), codes)])


def settings_page() -> str:
    """Return the text of settings.md."""
    schema = settings.Settings.model_json_schema()
    keys, blocks = [], []
    for key, value in schema["properties"].items():
        table = value.get("oneOf", [value])[0]  # a table, or one table or several
        if "$ref" in table:
            section = schema["$defs"][table["$ref"].removeprefix("#/$defs/")]
            blocks += [f"## `[{key}]`", section["description"], _keys_table(section, section["properties"], f"{key}_")]
        else:
            keys.append(key)
    intro = ["# Settings", GENERATED, getdoc(settings) or ""]
    return _page([*intro, "## Keys before the first table", _keys_table(schema, keys), *blocks])


PAGES = {"commands.md": commands_page, "settings.md": settings_page}


def _command_section(parent: click.Context, name: str, marks: str) -> list[str]:
    """Return the blocks of a command's section, and of the sections of its own commands."""
    assert isinstance(parent.command, click.Group)
    command = parent.command.get_command(parent, name)
    assert command
    context = click.Context(command, info_name=name, parent=parent)
    blocks = [f"{marks} `{context.command_path}`", *_command(context)]
    for subcommand in command.list_commands(context) if isinstance(command, click.Group) else ():
        blocks += _command_section(context, subcommand, f"{marks}#")
    return blocks


def _command(context: click.Context) -> Iterator[str]:
    """Yield the blocks that say how a command is used: usage, help, parameters."""
    command = context.command
    yield f"```text\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```"
    yield cleandoc(command.help or "")
    if command.params:
        rows = [_parameter(parameter, context) for parameter in command.params]
        yield _table(("argument or option", "value", "description"), rows)


def _parameter(parameter: click.Parameter, context: click.Context) -> tuple[str, str, str]:
    if not isinstance(parameter, click.Option):
        return _code(parameter.human_readable_name), "required" if parameter.required else "optional", ""
    option, _help = parameter.get_help_record(context) or ("", "")
    extra = parameter.get_help_extra(context)
    default = f"default {_code(extra['default'])}" if "default" in extra else None
    values = ", ".join(filter(None, (extra.get("required"), extra.get("range"), default)))
    return _code(option), values, parameter.help or ""


def _exit_codes() -> Iterator[tuple[int, str, str]]:
    for code, meaning in exits.MEANINGS.items():
        yield code, meaning, ""
    for error in errors.PredictionsError.__subclasses__():
        if error.__module__ == errors.__name__:
            yield error.exit_code, (getdoc(error) or "").partition("\n")[0], _code(error.__name__)


def _keys_table(schema: dict[str, Any], keys: Iterable[str], prefix: str = "") -> str:
    """Return the table of some keys of an object, from its JSON Schema."""
    columns = ("key", "type", "default", "values", "description", "environment variable")
    return _table(columns, [_key(schema, key, prefix + key) for key in keys])


def _key(schema: dict[str, Any], key: str, path: str) -> tuple[str, ...]:
    value = schema["properties"][key]
    default = "required" if key in schema.get("required", ()) else _code(json.dumps(value["default"]))
    variable = f"{settings.Settings.model_config['env_prefix']}{path}".upper()
    if "anyOf" in value:  # X or null; TOML has no null: such a key is left out
        value, default = {**value, **value["anyOf"][0]}, ""
    kind = {"array": "list of strings", "object": "table"}.get(value["type"], value.get("format", value["type"]))
    bounds = [text.format(value[word]) for word, text in BOUNDS.items() if word in value]
    bounds += map(_code, map(json.dumps, value.get("enum", ())))
    bounds += [f"names: {_code(pattern)}" for pattern in value.get("patternProperties", ())]
    return _code(key), kind, default, ", ".join(bounds), value.get("description", ""), _code(variable)


def _page(blocks: Sequence[str]) -> str:
    return "\n\n".join(filter(None, blocks)) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table without the columns that are empty."""
    used = [any(cells) for cells in zip(*rows, strict=True)]
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(_row(list(compress(line, used))) for line in lines)


def _row(cells: Sequence[str]) -> str:
    texts = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(texts)} |"


def _code(text: object) -> str:
    return f"`{text}`"


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
