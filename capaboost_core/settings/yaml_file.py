"""The safe subset of YAML that settings files may use."""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from capaboost_core.errors import UserError

MAX_DEPTH = 20  # levels of nesting


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file, with or without a byte-order mark.

    Raises:
        UserError: If the file cannot be read, is not YAML, or holds what `parse_yaml` refuses.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}; give the path of a YAML file") from error
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def parse_yaml(text: str) -> Any:
    """Values of plain types, with numbers as in YAML 1.2: `1e-3` is a number, `012` is 12, and `1:30` is text.

    Raises:
        YAMLError: If the text is not YAML, gives a name twice, has names that are not strings, tags of Python,
            halves of surrogate pairs, aliases, or more than 20 levels.
    """
    try:
        return copy.deepcopy(_parsed(text))
    except (ValueError, OverflowError) as error:
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error


@lru_cache(maxsize=256)  # the runs of a sweep read the same few files and values
def _parsed(text: str) -> Any:
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses what PyYAML would drop silently, and what could fill the memory."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _refused("aliases such as *name are not read; write the value out", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refused(f"more than {MAX_DEPTH} levels of nesting", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        text = super().construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _refused("half a surrogate pair is not a character; write the character itself", node.start_mark)
        return text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            name = self.construct_object(key)
            if not isinstance(name, str):
                raise _refused(f"the name {key.value!r} is not a string; quote it", key.start_mark)
            if name in names:
                raise _refused(f"{name} is given twice; drop one", key.start_mark)
            names.add(name)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        digits = self.construct_scalar(node).replace("_", "")
        return int(digits, 16 if "0x" in digits else 10)


def _refused(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_INT_RE = re.compile(r"[-+]?(0x[0-9a-fA-F]+|[0-9][0-9_]*)$")
_REAL_RE = re.compile(r"[-+]?(([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$")
# Without YAML 1.1's numbers, which PyYAML reads: octal by a leading zero, and base 60.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, _INT_RE, list("-+0123456789"))
_Loader.add_implicit_resolver(_FLOAT, _REAL_RE, list("-+.0123456789"))
_Loader.add_constructor(_INT, _Loader.construct_number)
