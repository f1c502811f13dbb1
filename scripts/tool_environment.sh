#!/usr/bin/env bash
# An environment of their own for tools that the project itself does not need, made once:
# `scripts/tool_environment.sh FOLDER PACKAGE...`
set -euo pipefail
folder=$1
shift
[ -e "$folder/complete" ] && exit
.venv/bin/python -m venv --without-pip "$folder"
.venv/bin/python -m pip --python "$folder/bin/python" install --quiet "$@"
touch "$folder/complete"
