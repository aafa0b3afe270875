"""The network of boxes: a wire of its own for each (wire.py), and one router per data directory (router.py)."""
