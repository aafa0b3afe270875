from api.conftest import ak, api, arl, arl_stranger, careless, empty_store, ground, stranger  # noqa: F401
from boxfixtures import (  # noqa: F401
    data,
    engine,
    golden,
    host_is_known,
    images,
    lent_engine,
    own_engine,
    runner,
    shared_engine,
)
