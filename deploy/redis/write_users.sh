#!/usr/bin/env bash
# Writes Redis's ACL file from the template beside it and one file per password:
#   write_users.sh SECRETS_FOLDER TARGET_FILE
# The default user is off, so nobody can be it, but it may do everything: Redis 7.0 replays its
# append-only file as that user, and drops every transaction that it may not run.
# SECRETS_FOLDER has operator, api, worker and metrics; each holds one user's password.
set -euo pipefail
folder=${1:?the folder with the passwords}
target=${2:?the file to write}

umask 077
text=$(<"$(dirname "$0")/users.acl.template")
for user in operator api worker metrics; do
    # Redis takes the SHA-256 of a password too; then the file holds no secret.
    hash=$(printf %s "$(<"$folder/$user")" | sha256sum | cut -d' ' -f1)
    text=${text/">${user^^}_PASSWORD"/"#$hash"}
done
printf '%s\n' "$text" >"$target"
