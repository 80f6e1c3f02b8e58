#!/bin/sh
# Peer $1 of a network without a server. Where it has a directory in that of the run already, it goes on.
set -eu
settings="agents=4 seed=$SEED gossip.certificates=/keys/$1 gossip.roster=$ROSTER checkpoint-every=5 $SET"
exec fedrl peer "conf/$CONF.toml" --id "$1" --listen 0.0.0.0:7000 --out "/out/$(cat "/keys/$1/run")/peer-$1" \
    $(printf -- '--set %s ' $settings)
