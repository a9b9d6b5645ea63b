"""A found recipe as a preset for `rayner train --config`: only what differs from the defaults."""

import dataclasses
from typing import Any

import yaml


def render_preset(config: dict[str, Any], comments: list[str]) -> str:
    """A YAML file with these groups of settings, as far as they differ from their defaults.

    Args:
        config: name of a group, or of a setting → its dataclass, or its value.
    """
    content = {
        name: list_differences(value) if dataclasses.is_dataclass(value) else value for name, value in config.items()
    }
    shown = {name: value for name, value in content.items() if value not in ({}, None)}
    head = "".join(f"# {line}\n" for line in comments)
    body: str = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return head + body


def list_differences(settings: Any) -> dict[str, Any]:
    """What a configuration has that its class has not by default, nested as it is."""
    found: dict[str, Any] = {}
    plain = type(settings)()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = list_differences(value)
            if inner:
                found[field.name] = inner
        elif value != getattr(plain, field.name):
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found
