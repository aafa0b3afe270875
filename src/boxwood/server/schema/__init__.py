"""What lies on the wire, one module for each noun: requests (`…Body`, `…Query`) and answers (`…Answer`).

The OpenAPI document is made of these types, and nothing else is decoded or encoded.
"""
