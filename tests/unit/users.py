"""Tests of permissions, which do not bind root."""

import os
from contextlib import contextmanager


@contextmanager
def as_nobody(folder):
    """As a user whom permissions bind, where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        for parent in (folder, *folder.parents[:3]):
            parent.chmod(parent.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
