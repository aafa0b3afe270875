from api.conftest import (  # noqa: F401
    ak,
    api,
    arl,
    arl_stranger,
    careless,
    empty_store,
    ground,
    guest,
    server,
    stranger,
)
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
from netfixtures import accounts, shared, world  # noqa: F401
