#!/bin/sh
# Submits CONF to the SuperLink, with as many agents as there are client containers, and shows how it goes. A run that
# is in its directory already goes on. Ends as the run ends: with 0, or with 1 and a sentence that says why.
set -eu
agents=${AGENTS:-$(getent ahostsv4 client | awk '{ print $1 }' | sort -u | wc -l)}
run=/out/${RUN:-$CONF-$(date +%Y%m%d-%H%M%S)}
docker/writable.sh /out "$run"
there="--superlink control:9093"
if [ -n "${ROOTS:-}" ]; then
    there="$there --root-certificates $ROOTS"
    docker/admit.sh "$ROOTS"
fi
if [ -e "$run/conf.toml" ]; then
    exec fedrl run --resume "$run" $there ${SET:+$(printf -- '--set %s ' $SET)}
fi
settings="agents=$agents attack.byzantine=$ATTACKERS tensorboard=true checkpoint-every=5 ${MORE:-} $SET"
exec fedrl run "conf/$CONF.toml" --seed "$SEED" --out "$run" $there $(printf -- '--set %s ' $settings)
