"""Ports of VMs at hosts of their own (VM-PORT.DOMAIN): who may come in, and what is passed on in both directions."""
