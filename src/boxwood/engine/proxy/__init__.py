"""The request layer of network policies: a process that ends boxes' TLS, reads their requests, and judges each.

It runs as a user of its own, in the network namespace of the router's resolver, sees no file, and knows what the server
tells it (control.py) and where connections were going (origins.py). Bytes come from hostile boxes on one side and from
the internet on the other: what goes on is always written anew from what was parsed (h11, h2), never passed through.
"""
