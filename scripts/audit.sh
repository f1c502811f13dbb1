#!/usr/bin/env bash
# What we depend on, and what is known to be wrong with it. Run it through `make audit`.
# Writes dist/sbom.json (CycloneDX) of the environment, then asks PyPI's advisories about every pinned
# version; exits with another status than 0 when one is known to be vulnerable.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=.venv/audit
scripts/tool_environment.sh "$tools" pip-audit cyclonedx-bom
mkdir -p dist
"$tools/bin/cyclonedx-py" environment .venv/bin/python --pyproject pyproject.toml --output-file dist/sbom.json
echo "audit: dist/sbom.json lists $(grep -c '"bom-ref"' dist/sbom.json) parts"
# Strict: a version that could not be asked about is an error, where it would else pass for a good one.
"$tools/bin/pip-audit" --strict --requirement constraints.txt --no-deps --disable-pip
