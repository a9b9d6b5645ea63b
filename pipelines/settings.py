"""A door's settings from flags and YAML presets, with every mistake told at once.

jsonargparse turns configuration classes into flags, dotted overrides, `--print_config` and `--help`, and checks types;
this module adds presets by name, lists as plain arguments, and messages that name the nearest valid key. A YAML file's
keys are read as if they stood on the command line where `--config` stands.
"""

import dataclasses
import datetime
import difflib
import json
import re
import types
import typing
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from pipelines.ner.errors import UserError, raise_all

PRESETS = Path(__file__).parent / "configs"
COMMAND_LINE = "the command line"
MAY_BE_EMPTY = ("list", "text", "mapping", "mapping of lists")
"""What takes no null: with nothing behind its key in YAML it is an empty list or mapping, or a text that is missing."""
SWITCHES = ("--help", "-h", "--print_config", "--debug")
_PARSER_KEY = re.compile(r'Parser key "(?P<key>[\w.]+)":\s*(?P<problem>.*)', re.DOTALL)
_CONFIG_GROUP = re.compile(
    r"^  --[\w.]+ CONFIG\s+Path to a configuration\s+file\.\n|, --[\w.]+\+ \[ITEM,\.\.\.\]", re.MULTILINE
)
"""What jsonargparse offers in its help and `_read_arguments` has other ways for."""
_EXPECTED = re.compile(r"Expected an? <class '(\w+)'>|one of (\S.*)")

Config = TypeVar("Config")


class ConfigError(UserError):
    """Settings that are unknown, malformed, or cannot be meant."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key with its values as given, and where it was given."""

    key: str
    values: tuple[str, ...]
    origin: str

    def join(self, other: "Setting") -> "Setting":
        """Both lists in one: of a flag that was given twice."""
        values = [yaml.safe_load(one.values[0]) if one.is_literal else one.values for one in (self, other)]
        return replace(self, values=(json.dumps([*values[0], *values[1]], ensure_ascii=False, default=str),))

    @property
    def is_literal(self) -> bool:
        """Whether its one value is a list as JSON or YAML has it."""
        return len(self.values) == 1 and _is_list(self.values[0])

    def to_arguments(self, takes: str) -> list[str]:
        """As jsonargparse takes it."""
        if takes == "list" and not self.is_literal:
            return [f"--{self.key}={json.dumps(self.values, ensure_ascii=False)}"]
        if "mapping" in takes and not self.values:
            return [f"--{self.key}={{}}"]
        return [f"--{self.key}={self.values[0] if self.values else 'true'}"]


def parse_settings(verb: str, config_class: type[Config], arguments: Sequence[str], description: str) -> Config:
    """An instance of a configuration dataclass. Raises UserError (or UserErrors, several); exits after `--help`."""
    parser = _build_parser(verb, config_class, description)
    switches = [argument for argument in arguments if argument.split("=")[0] in SWITCHES]
    if "--help" in switches or "-h" in switches:
        parser.add_argument("--debug", action="store_true", help="Show tracebacks, and what libraries log.")
        print(_CONFIG_GROUP.sub("", parser.format_help()).replace("[ITEM,...]", "ITEM ..."))
        raise SystemExit(0)
    keys = list_keys(config_class)
    settings, problems = _read_arguments(arguments, keys)
    known: dict[str, Setting] = {}
    for setting in settings:
        mapping = _find_mapping(setting.key, keys)
        if mapping is None and setting.key not in keys:
            problems.append(_unknown_key(setting, keys))
            continue
        takes = keys[mapping or setting.key]
        try:
            if mapping is not None:  # its keys are the user's own
                known[mapping] = _add_to_mapping(known.get(mapping), setting, mapping, takes)
            elif (problem := _wrong_number(setting, takes)) is not None:
                problems.append(problem)
            elif takes == "list" and setting.origin == COMMAND_LINE == getattr(known.get(setting.key), "origin", None):
                known[setting.key] = known[setting.key].join(setting)
            else:
                known[setting.key] = setting  # a later one overrides
        except ConfigError as error:
            problems.append(error)
            known.pop(mapping or setting.key, None)
    while True:  # each type error takes its setting out, so that the next one is found too
        flags = [flag for setting in known.values() for flag in setting.to_arguments(keys[setting.key])]
        try:
            namespace = parser.parse_args(flags)
            break
        except ArgumentError as error:
            wrong = _find_setting(str(error), known)
            problems.append(_wrong_type(str(error), wrong))
            if wrong is None:
                break
            del known[wrong.key]
    raise_all(problems)
    printing = [switch for switch in switches if switch.startswith("--print_config")]
    if printing:
        parser.parse_args([*flags, *printing])
    built: Namespace = parser.instantiate(namespace)
    return config_class(**{field.name: built[field.name] for field in dataclasses.fields(config_class)})  # type: ignore[arg-type]


def iterate_texts(content: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in settings, also in lists."""
    if isinstance(content, str) and content:
        yield where, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from iterate_texts(value, f"{where}.{key}" if where else str(key))
    elif isinstance(content, list | tuple):
        for value in content:
            yield from iterate_texts(value, where)


def list_keys(config_class: Any, prefix: str = "") -> dict[str, str]:
    """Every dotted key of a configuration class that takes a value, and what it takes.

    `list`, `switch`, `one`, `text` (one that cannot be null); or `mapping`, `mapping of lists`: values under keys of
    the user's own, `--models.NAME X`.
    """
    keys: dict[str, str] = {}
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            keys |= list_keys(kind, f"{prefix}{field.name}.")
        else:
            if typing.get_origin(kind) is dict:
                of_lists = typing.get_origin(typing.get_args(kind)[1]) is list
                keys[f"{prefix}{field.name}"] = "mapping of lists" if of_lists else "mapping"
                continue
            options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
            takes_list = any(typing.get_origin(option) in (list, tuple) for option in options)
            takes = "list" if takes_list else "switch" if bool in options else "text" if options == (str,) else "one"
            keys[f"{prefix}{field.name}"] = takes
    return keys


def _find_mapping(key: str, keys: dict[str, str]) -> str | None:
    """The mapping that a dotted key lies in, if it does."""
    return next((name for name, takes in keys.items() if "mapping" in takes and key.startswith(f"{name}.")), None)


def _find_key(name: str, keys: dict[str, str]) -> str:
    """The key of a flag, which may have dashes for underscores; names of the user's own (`--models.NAME`) stay."""
    key = name.replace("-", "_")
    mapping = _find_mapping(key, keys)
    return key if mapping is None or keys[mapping] == "mapping of lists" else mapping + name[len(mapping) :]


def _build_parser(verb: str, config_class: Any, description: str) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"rayner {verb}",
        usage=f"rayner {verb} [--config PRESET] [--option VALUE ...]",
        description=description,
        exit_on_error=False,
    )
    presets = ", ".join(f"`{path.stem}`" for path in sorted(PRESETS.glob("*.yaml")))
    parser.add_argument("--config", action="config", help=f"A YAML file of settings, or a preset by name: {presets}.")
    parser.add_class_arguments(config_class)
    return parser


def _read_arguments(arguments: Sequence[str], keys: dict[str, str]) -> tuple[list[Setting], list[UserError]]:
    """The settings on the command line, a preset's keys in its place; a flag takes every argument up to the next."""
    settings: list[Setting] = []
    problems: list[UserError] = []
    flag: str | None = None
    values: list[str] = []

    def finish() -> None:
        """Keep the flag read last with its values, or the settings of the presets it names."""
        if flag == "config":
            for preset in values:
                _try_preset(preset, [key for key, kind in keys.items() if kind in MAY_BE_EMPTY], settings, problems)
            if not values:
                rule = "a YAML file, or a preset by name"
                problems.append(ConfigError("a value is missing", where="`--config`", rule=rule))
        elif flag is not None:
            settings.append(Setting(flag, tuple(values), COMMAND_LINE))

    for argument in arguments:
        if argument.split("=")[0] in SWITCHES:
            continue
        if argument.startswith("--"):
            finish()
            name, equals, value = argument.removeprefix("--").partition("=")
            flag, values = _find_key(name, keys), [value] if equals else []
        elif flag is None:
            rule = "settings are given as `--name value`"
            problems.append(ConfigError("an argument without a name", rule=rule, value=argument))
        else:
            values.append(argument)
    finish()
    return settings, problems


def _try_preset(name: str, empty: Container[str], settings: list[Setting], problems: list[UserError]) -> None:
    path = Path(name) if Path(name).is_file() else PRESETS / f"{name}.yaml"
    if not path.is_file():
        shipped = sorted(preset.stem for preset in PRESETS.glob("*.yaml"))
        near = difflib.get_close_matches(name, shipped, n=1)
        problems.append(
            ConfigError(
                f"no preset and no file `{name}`",
                where="`--config`",
                rule="a YAML file, or one of " + ", ".join(f"`{preset}`" for preset in shipped),
                remedy=f"did you mean `{near[0]}`?" if near else "check the path",
            )
        )
        return
    try:
        text = path.read_text(encoding="utf-8")
        _check_keys(yaml.compose(text, yaml.SafeLoader))
        content = yaml.safe_load(text)
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise ValueError(f"a mapping of keys is expected, not {type(content).__name__}")
    except (yaml.YAMLError, ValueError, OSError) as error:
        problems.append(ConfigError("the preset cannot be read", where=str(path), value=" ".join(str(error).split())))
        return
    settings += [Setting(key, values, str(path)) for key, values in _flatten(content, empty)]


def _check_keys(node: yaml.Node | None) -> None:
    """Raise yaml.YAMLError for a key that stands twice in a mapping: YAML would forget the first one."""
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            _check_keys(one)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` stands twice", key.start_mark)
            seen.add(str(key.value))
            _check_keys(value)


def _is_list(value: str) -> bool:
    """Whether it is a list as JSON or YAML has it, and not a pattern of files, of which `[ab]` alone is one too."""
    try:
        found = yaml.safe_load(value) if value.startswith("[") else None
    except yaml.YAMLError:
        return False
    if not isinstance(found, list) or len(found) != 1:
        return isinstance(found, list)
    return not isinstance(found[0], str) or value[1:].lstrip()[:1] in ("'", '"')


def _flatten(node: dict[Any, Any], empty: Container[str], prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flatten(value, empty, f"{prefix}{key}.")
        elif isinstance(value, str | datetime.date):  # an unquoted `2024-05-01` is meant as text
            yield f"{prefix}{key}", (str(value),)
        elif isinstance(value, list) and all(isinstance(one, str) for one in value):
            yield f"{prefix}{key}", tuple(value)
        elif value is None and f"{prefix}{key}" in empty:  # `dev:` with nothing behind it
            yield f"{prefix}{key}", ()
        else:
            yield f"{prefix}{key}", (json.dumps(value, ensure_ascii=False, default=str),)


def _unknown_key(setting: Setting, keys: dict[str, str]) -> ConfigError:
    last = setting.key.rsplit(".", 1)[-1]
    by_last = [key for key in keys if key.rsplit(".", 1)[-1] == last]
    near = by_last or difflib.get_close_matches(setting.key, keys, n=2, cutoff=0.5)
    inside = [key for key in keys if key.startswith(setting.key + ".")]
    return ConfigError(
        f"unknown setting `{setting.key}`",
        where=setting.origin,
        value=" ".join(setting.values) or None,
        remedy="did you mean " + " or ".join(f"`--{key}`" for key in near[:3]) + "?"
        if near and not inside
        else f"it is a group; set one of {', '.join(f'`--{key}`' for key in inside[:6])}"
        if inside
        else "`--help` lists every setting",
    )


def _add_to_mapping(before: Setting | None, setting: Setting, mapping: str, takes: str) -> Setting:
    """A mapping with one more key. Raises ConfigError."""
    problem = _wrong_number(setting, "list" if takes == "mapping of lists" else "one")
    whole = yaml.safe_load(before.values[0]) if before is not None and before.values else {}
    if problem is None and not isinstance(whole, dict):
        value = None if before is None else " ".join(before.values)
        problem = ConfigError(
            f"`{mapping}` is no mapping", where=setting.origin, rule=f"`--{mapping}.NAME`", value=value
        )
    if problem is not None:
        raise problem
    entry = list(setting.values) if takes == "mapping of lists" else setting.values[0]
    whole |= {setting.key.removeprefix(f"{mapping}."): entry}
    return Setting(mapping, (json.dumps(whole, ensure_ascii=False),), setting.origin)


def _wrong_number(setting: Setting, takes: str) -> ConfigError | None:
    """The mistake of giving no value, or several where one is meant."""
    from_flag = setting.origin == COMMAND_LINE
    if not setting.values:
        if (takes == "switch" and from_flag) or (
            takes in ("list", "mapping", "mapping of lists") and not from_flag
        ):  # `--fresh`; `dev: []`
            return None
        return ConfigError(f"`{setting.key}` has no value", where=setting.origin, remedy=f"`--{setting.key} VALUE`")
    if takes == "list" or len(setting.values) == 1:
        return None
    value = ", ".join(f"`{value}`" for value in setting.values)
    return ConfigError(f"`{setting.key}` takes one value", where=setting.origin, value=value)


def _find_setting(message: str, settings: dict[str, Setting]) -> Setting | None:
    match = _PARSER_KEY.search(message)
    return settings.get(match["key"]) if match else None


def _wrong_type(message: str, setting: Setting | None) -> ConfigError:
    if setting is None:
        return ConfigError("a setting cannot be read", value=" ".join(message.split()))
    names = [" or ".join(filter(None, match)) for match in _EXPECTED.findall(message)]
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
    rule = " or ".join(dict.fromkeys(kinds.get(name, name) for name in names)) or " ".join(message.split())
    value = " ".join(setting.values)
    return ConfigError(f"`{setting.key}` has a value of the wrong kind", where=setting.origin, rule=rule, value=value)
