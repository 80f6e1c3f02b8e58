#!/bin/sh
# Peer $1 of a network without a server. Where it has a directory in that of the run already, it goes on.
set -eu
# Whoever comes first makes the certificates of all. On machines of their own each has its own only.
flock /keys/lock fedrl certs /keys --server '' --peers 0-3
settings="agents=4 seed=$SEED gossip.certificates=/keys gossip.roster=$ROSTER checkpoint-every=5 $SET"
exec fedrl peer "conf/$CONF.toml" --id "$1" --listen 0.0.0.0:7000 --out "/out/${RUN:-$CONF}/peer-$1" \
    $(printf -- '--set %s ' $settings)
