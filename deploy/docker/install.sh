#!/usr/bin/env bash
# Inside the image: installs the project with these extras into /opt/elite, then takes out what is
# not needed to run.
#   install.sh EXTRAS cpu|cuda|none
set -euo pipefail
extras=$1
torch=$2
pip=(/opt/elite/bin/python -m pip install --quiet --no-compile --constraint constraints.txt)

version=$(sed -n 's/^torch==//p' constraints.txt)
case $torch in
cpu) "${pip[@]}" "torch==$version+cpu" 2>/dev/null ||
    "${pip[@]}" "torch==$version+cpu" --extra-index-url https://download.pytorch.org/whl/cpu ||
    "${pip[@]}" "torch==$version" ;;
cuda) "${pip[@]}" "torch===$version" ;;
esac
"${pip[@]}" ".[$extras]"

packages=$(/opt/elite/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# pip stays with the build; libraries' own tests, headers and stubs are of no use to a service.
/opt/elite/bin/python -m pip uninstall --quiet --yes pip setuptools 2>/dev/null || true
find "$packages" -type d \( -name tests -o -name include \) -not -path '*/torch/*' -prune -exec rm -rf {} +
find "$packages" -name '*.pyi' -not -path '*/torch/*' -delete
# The root is read-only, so the bytecode has to be there.
/opt/elite/bin/python -m compileall -q -j 0 "$packages" >/dev/null || true
