"""Rules for the Prometheus operator, from those of deploy/monitoring: one source, two forms.

`python -m deploy.kubernetes.rules` writes components/monitoring/rules.yaml; with `--check` it fails
when what is there is not what the rules say.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER.parent / "monitoring" / "prometheus" / "rules"
TARGET = FOLDER / "components" / "monitoring" / "rules.yaml"
_HEADER = """\
# Written by `python -m deploy.kubernetes.rules` from deploy/monitoring/prometheus/rules, where
# every rule is explained and tested. Change them there.
"""


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as lines."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Queries are easier to read so."""
        style = "|" if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def text() -> str:
    """What the file has to hold."""
    # Names of groups are one file's own there, and one object's here.
    groups = [
        {**group, "name": f"{path.stem}-{group['name']}"}
        for path in sorted(SOURCES.glob("*.yml"))
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]
    ]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "elite"},
        "spec": {"groups": groups},
    }
    return _HEADER + yaml.dump(rule, Dumper=_Dumper, sort_keys=False, width=100)


def is_fresh() -> bool:
    """Whether the file holds it."""
    return TARGET.is_file() and TARGET.read_text("utf-8") == text()


def main() -> int:
    """Writes, or checks: then 1 when it is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    if parser.parse_args().check:
        return 0 if is_fresh() else 1
    TARGET.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
