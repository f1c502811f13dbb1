#!/usr/bin/env bash
# Makes the passwords of deploy/compose once, and Redis's file of users from them.
set -euo pipefail
cd "$(dirname "$0")/.."
secrets=deploy/compose/secrets

umask 077
for name in operator api worker metrics grafana; do
    [ -s "$secrets/$name" ] || head -c 32 /dev/urandom | sha256sum | cut -c1-48 >"$secrets/$name"
done
deploy/redis/write_users.sh "$secrets" "$secrets/users.acl"
# The exporter wants passwords by address.
printf '{"redis://redis:6379": "%s", "redis://metrics@redis:6379": "%s"}\n' \
    "$(<"$secrets/metrics")" "$(<"$secrets/metrics")" >"$secrets/metrics.json"
# Where alerts go; a port that nobody listens on until it says another.
[ -s "$secrets/alertmanager_webhook_url" ] || printf 'http://127.0.0.1:9/' \
    >"$secrets/alertmanager_webhook_url"
# Compose mounts files as they are, and the services are other users than this one: the files may be
# read by all, the folder by its owner alone.
chmod 700 "$secrets"
chmod 644 "$secrets"/{operator,api,worker,metrics,metrics.json,grafana,users.acl,alertmanager_webhook_url}
