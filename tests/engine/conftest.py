from boxfixtures import data, engine, golden, images, runner  # noqa: F401
