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
from netfixtures import accounts, own, own_vm, shared, vm, world  # noqa: F401
