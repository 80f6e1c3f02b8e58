#!/bin/sh
# What peers must have before they start: each its own certificate, and all the name of the same run. The authority's key
# stays here. On machines of their own each is given its certificate by hand, and the run is wherever it says.
set -eu
docker/writable.sh /out "/out/${RUN:-.}"
fedrl certs /authority --server '' --peers 0-3
run=${RUN:-$CONF-$(date +%Y%m%d-%H%M%S)}
for peer in 0 1 2 3; do
    cp -p /authority/ca.pem /authority/peer-$peer.pem /authority/peer-$peer.key /keys/$peer/
    echo "$run" > /keys/$peer/run
done
echo "peers 0 to 3 write to $run"
