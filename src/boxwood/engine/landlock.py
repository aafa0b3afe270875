"""What a process may change of the host's files, for good: landlock(7), which takes away what even root's uid may do.

Reading and executing stay as they are, unless that is asked for. Source: landlock_create_ruleset(2),
landlock_add_rule(2), landlock_restrict_self(2).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from boxwood.engine import kernel as k

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
EXECUTE, READ_FILE, READ_DIRECTORY = 1 << 0, 1 << 2, 1 << 3
WRITE, REMOVE, MAKE_FILE, MAKE_SOCKET = 1 << 1, 1 << 5, 1 << 8, 1 << 9
_TRUNCATE = 1 << 14  # goes with WRITE
_CHANGES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))  # all that version 1 knows, but read and execute
_READS = EXECUTE | READ_FILE | READ_DIRECTORY
_REFER, _IOCTL = 1 << 13, 1 << 15
_SIZES = {1: 8, 4: 16, 6: 24}  # bytes of struct landlock_ruleset_attr, from that version on
_SIGNALS_AND_ABSTRACT_SOCKETS = 3


def version() -> int:
    """Of the kernel's Landlock; 0: it has none, or does not use it."""
    try:
        return k.landlock(_CREATE_RULESET, None, 0, _ASK_VERSION)
    except OSError:
        return 0


def confine(allowed: Mapping[Path, int], *, reading: Iterable[Path] | None = None) -> bool:
    """From now on this thread, and all that it starts, changes nothing below any place but these (WRITE and so on, all
    that are wanted of a place; those that are not there are left out), and from version 6 on sends no signal to others.
    `reading`: it also reads and executes nothing but what lies below these. False: the kernel has no Landlock. OSError.
    To be called with no_new_privs, and before there are other threads."""
    known = version()
    if not known:
        return False
    handled = _CHANGES
    if reading is not None:
        handled |= _READS
        allowed = {**allowed, **dict.fromkeys(reading, _READS)}
    for since, rights in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL)):
        handled |= rights if known >= since else 0
    attributes = struct.pack("=QQQ", handled, 0, _SIGNALS_AND_ABSTRACT_SOCKETS if known >= 6 else 0)
    size = max(size for since, size in _SIZES.items() if known >= since)
    rules = k.landlock(_CREATE_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(size), 0)
    try:
        for place, rights in allowed.items():
            _allow(rules, place, (rights | _TRUNCATE if rights & WRITE else rights) & handled)
        k.landlock(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return True


def _allow(rules: int, place: Path, rights: int) -> None:
    try:
        at = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = struct.pack("=Qi", rights, at)
        k.landlock(_ADD_RULE, rules, _PATH_BENEATH, ctypes.c_char_p(rule), 0)
    finally:
        os.close(at)
