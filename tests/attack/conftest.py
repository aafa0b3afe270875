from api.conftest import ak, api, arl, arl_stranger, empty_store, ground, stranger  # noqa: F401
from boxfixtures import data, engine, golden, images, runner  # noqa: F401
