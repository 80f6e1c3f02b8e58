#!/bin/sh
# A SuperLink with TLS that admits registered nodes only. Makes what certificates and keys are missing; the authority's key
# stays here, and nodes see what is theirs. On machines of their own each sees its own key only.
set -eu
fedrl certs /authority --server superlink,control --nodes 0-15
cp -p /authority/ca.pem /authority/node-* /keys/
exec flower-superlink --ssl-ca-certfile /authority/ca.pem --ssl-certfile /authority/server.pem \
    --ssl-keyfile /authority/server.key --enable-supernode-auth --database /state/fleet.sqlite "$@"
