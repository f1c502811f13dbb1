#!/usr/bin/env bash
# The documentation as a site, in .elite/site; whatever mkdocs warns of is an error. Run it through
# `make docs`.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=.venv/docs
scripts/tool_environment.sh "$tools" mkdocs==1.6.1 mkdocs-material==9.8.2
# The theme's advertisement for its successor.
export NO_MKDOCS_2_WARNING=1
"$tools/bin/mkdocs" build --strict --quiet
echo "docs: .elite/site/index.html"
