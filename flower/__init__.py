"""The only room that imports Flower's private modules. It gives the rest of the house six verbs.

==================  ==============================================================================================
who is there        ``grid.SuperLinkGrid.get_node_ids``: the ids of the connected nodes
send                ``grid.SuperLinkGrid.push_messages``: the server sends requests to nodes
receive             ``grid.SuperLinkGrid.pull_messages``: the server fetches the replies that have arrived;
                    ``fleet.NodeConnection.receive`` and ``fetch``: a node fetches its next request
reply               ``fleet.NodeConnection.reply`` and ``confirm``: a node answers a request
submit a run        ``control.Control.submit`` (and ``stop``)
status of a run     ``control.Control.status``; a node asks ``fleet.NodeConnection.is_over``
==================  ==============================================================================================

Around the verbs: ``keys`` (the address of a SuperLink, the key of a node), ``calls`` (signed calls with deadlines and
retries), ``errors`` (the meaning of a gRPC error), ``objects`` (the form of a message on the wire), ``launch`` (the
processes of a federation on this machine). Another release of Flower changes this room only;
tests/flower/test_contract.py holds the verbs to a real SuperLink.
"""
