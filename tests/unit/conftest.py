from unit.hostile import hostile  # noqa: F401
