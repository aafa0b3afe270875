from boxfixtures import data, engine, golden, images, runner  # noqa: F401
from netfixtures import accounts, own, own_vm, world  # noqa: F401
