"""The planner's data files, read once per process.

They are YAML beside the code (`data/`), so that a card, a model or a tier is a line of data and
never a line of code.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml

# The C loader reads all tables in a tenth of the time of the Python one.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: str) -> Any:
    """The value of one YAML document. Raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_LOADER)


@cache
def table(name: str) -> Any:
    """The parsed data file `data/<name>.yaml`."""
    file = resources.files("services.planner") / "data" / f"{name}.yaml"
    return parse_yaml(file.read_text(encoding="utf-8"))
