"""Calls of the kernel by their number, for programs in boxes that no library keeps from asking."""

SYS = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def SYS(n, *a):
    ctypes.set_errno(0)
    return libc.syscall(ctypes.c_long(n), *[ctypes.c_long(x) if isinstance(x, int) else x for x in a])
"""
