#!/usr/bin/env bash
# Creates the producer's and the writer's user and gives each what it needs and no more. Safe to repeat.
set -euo pipefail

rpk_admin() {
  rpk "$@" -X brokers=redpanda:9092 -X admin.hosts=redpanda:9644 \
    -X user=admin -X "pass=${REDPANDA_ADMIN_PASSWORD}" -X sasl.mechanism=SCRAM-SHA-256
}

ensure_user() {
  if rpk_admin security user list | awk '{print $1}' | grep -qx "$1"; then
    rpk_admin security user update "$1" --new-password "$2" --mechanism SCRAM-SHA-256
  else
    rpk_admin security user create "$1" -p "$2" --mechanism SCRAM-SHA-256
  fi
}

allow() {
  rpk_admin security acl create --allow-principal "User:$1" "${@:2}"
}

ensure_user producer "${PRODUCER_PASSWORD}"
ensure_user writer "${WRITER_PASSWORD}"

# The producer writes every topic and reads back its cursors.
allow producer --operation write,describe --topic bluesky. --resource-pattern-type prefixed
allow producer --operation read,describe --topic bluesky.jetstream-cursor
allow producer --operation read --group explorer-producer-reader

# The writer reads every topic in its group and sets aside what it cannot read.
allow writer --operation read,describe --topic bluesky. --resource-pattern-type prefixed
allow writer --operation write,describe --topic bluesky.dead-letter
allow writer --operation read,describe --group post-explorer-writer
