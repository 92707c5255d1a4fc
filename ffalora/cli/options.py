"""Flags made from the configuration: one ``--section.key VALUE`` for every key. ``--help`` shows those that most people
set, ``--help-all`` all of them, by section.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import yaml
from pydantic.fields import FieldInfo

from ..config import Config, ConfigError, fields
from ..config.messages import near_keys
from ..config.names import dotted_names
from ..config.plain_yaml import read_yaml
from ..config.section import ONE_IS_A_LIST

_OFTEN = ("data.name", "privacy.target_epsilon", "federation.rounds", "optimizer.batch_size", "optimizer.lr")
_ALL, _WORDS = f"{__name__}.all", f"{__name__}.words"
_NAMES = {str: "TEXT", int: "INT", float: "NUMBER", bool: "true|false"}


class ConfigCommand(click.Command):
    """A command that takes configuration flags; the function gets them as ``overrides``, a dict of dotted keys.

    ``--methods.NAME.section.key VALUE`` changes one method alone.
    """

    def __init__(self, *args: Any, sections: tuple[str, ...] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs | {"context_settings": {"max_content_width": 110}})
        keys = {key: field for key, field in fields().items() if sections is None or _is_in(key, sections)}
        flags = {flag: field for key, field in keys.items() for flag in (key, *dotted_names(key))}
        self._keys = {flag.replace(".", "__"): flag for flag in flags}
        every = click.Option(["--help-all"], is_flag=True, expose_value=False, is_eager=True, callback=_show_all)
        every.help = "Show every key of the configuration, each of which is a flag."
        self.params.append(every)
        self._own = list(self.params)
        self.params += [_option(flag, field, is_second=flag not in keys) for flag, field in flags.items()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = list(args)
        rest, methods = _take_methods(args)
        try:
            parsed = super().parse_args(ctx, rest)
        except click.NoSuchOption as error:
            near = near_keys(error.option_name.lstrip("-").replace("-", "_"), self._keys.values())
            meant = " or ".join(f"'--{key}'" for key in near if key in self._keys.values())
            if not meant:
                raise
            raise click.UsageError(f"No such option '{error.option_name}'; did you mean {meant}?", ctx=ctx) from None
        given = {key: ctx.params.pop(name) for name, key in self._keys.items()}
        ctx.params["overrides"] = {key: value.value for key, value in given.items() if value is not None} | methods
        return parsed

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        keys = {self._keys[str(p.name)]: p for p in self.params if p.name in self._keys and not getattr(p, "hidden", 0)}
        if not ctx.meta.get(_ALL) and all(key in keys for key in _OFTEN):
            with formatter.section("Often set"):
                formatter.write_dl([_in_short(keys[key], ctx) for key in _OFTEN], col_max=34)
        own = [*(p for p in self._own if isinstance(p, click.Option)), *self._help(ctx)]
        with formatter.section("Options"):
            formatter.write_dl([record for option in own if (record := option.get_help_record(ctx))])
        by_section: dict[str, list[tuple[str, str]]] = {}
        for key, parameter in keys.items() if ctx.meta.get(_ALL) else ():
            if record := parameter.get_help_record(ctx):
                section, dot, _ = key.partition(".")
                by_section.setdefault(section if dot else "run", []).append(record)
        for section, records in by_section.items():
            field = Config.model_fields.get(section)
            about = (field.annotation.__doc__ if field else None) or "The whole run."
            with formatter.section(f"{section}: {about.strip().partition('.')[0]}"):
                formatter.write_dl(records, col_max=34)

    def _help(self, ctx: click.Context) -> list[click.Option]:
        option = self.get_help_option(ctx)
        return [option] if option else []


def given_words() -> list[str]:
    """The arguments of the :class:`ConfigCommand` that runs, as they were given."""
    return click.get_current_context().meta[_WORDS]


def _in_short(parameter: click.Parameter, ctx: click.Context) -> tuple[str, str]:
    """The key of a flag, and what it is up to the first semicolon, for a first look."""
    flags, about = parameter.get_help_record(ctx) or ("", "")
    return flags, about.partition(";")[0].partition("  ")[0]


def _show_all(ctx: click.Context, _: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


def _is_in(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


class Given:
    """A value that was given on the command line (it may be null)."""

    def __init__(self, value: Any):
        self.value = value


class _Value(click.ParamType):
    """A value in YAML, or plain text where the key holds text, or may hold one text for a list."""

    def __init__(self, field: FieldInfo):
        self.name = describe_type(field.annotation)
        self._takes_text = all(kind is str or get_origin(kind) is Literal for kind in _alternatives(field.annotation))
        self._takes_one = ONE_IS_A_LIST in field.metadata

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Given:
        if isinstance(value, Given):
            return value
        is_text = self._takes_text or (self._takes_one and not value.startswith(("[", "'", '"')))
        return Given(value if is_text and value != "null" else _yaml(value, param))

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name


def describe_type(kind: Any) -> str:
    """A type as a person would write it: ``INT``, ``ffa|lora``, ``[TEXT, …]``."""
    if _alternatives(kind) != [kind]:
        return " or ".join(dict.fromkeys(map(describe_type, _alternatives(kind))))
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return describe_type(arguments[0])
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is list:
        return f"[{describe_type(arguments[0])}, …]"
    if origin is dict:
        return f"{{TEXT: {describe_type(arguments[1])}, …}}"
    return _NAMES.get(kind, "YAML")


def _option(key: str, field: FieldInfo, is_second: bool) -> click.Option:
    """The flag of a key, or a second name of it, which is not shown on its own."""
    default = field.get_default(call_default_factory=True)
    names = [f"--{other}" for other in dotted_names(key)]
    shown = f"  (or {', '.join(names)})" if names else ""
    shown += "" if default is None else f"  [{_plain(default)}]"
    flags = [f"--{key}", key.replace(".", "__")]
    return click.Option(flags, type=_Value(field), help=f"{field.description}{shown}", hidden=is_second)


def _alternatives(kind: Any) -> list[Any]:
    """The types that a union allows, without None; of any other type, itself."""
    if get_origin(kind) not in (Union, types.UnionType):
        return [kind]
    return [alternative for alternative in get_args(kind) if alternative is not type(None)]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _yaml(text: str, parameter: click.Parameter | None) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        name = parameter.opts[0] if parameter else "value"
        raise ConfigError(
            f"{name} {text!r}: not a value in YAML; write numbers, text, [a, b] or {{key: value}}"
        ) from None


def _take_methods(args: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Splits ``--methods.NAME.key VALUE`` (or ``=VALUE``) from the other arguments."""
    rest: list[str] = []
    methods: dict[str, Any] = {}
    position = 0
    while position < len(args):
        argument = args[position]
        position += 1
        if not argument.startswith("--methods."):
            rest.append(argument)
            continue
        key, equals, value = argument[2:].partition("=")
        if not equals:
            if position == len(args):
                raise click.UsageError(f"Option '--{key}' requires an argument.")
            value = args[position]
            position += 1
        methods[key] = _yaml(value, None)
    return rest, methods
