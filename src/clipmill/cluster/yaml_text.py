"""YAML that reads well, and the same whatever else a process has imported."""

from typing import Any

import yaml


def yaml_text(*documents: Any) -> str:
    """The documents, keys in their order, several lines of text as several lines."""
    text: str = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000)
    return text


class _Dumper(yaml.SafeDumper):
    """Its own representer of text: KFP puts another one into PyYAML's own dumper."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write what comes twice twice; a reader shouldn't look for it."""
        del data
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
