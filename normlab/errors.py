"""Errors that a user can cause, each with the exit code that the command line answers with."""

from __future__ import annotations


class NormlabError(Exception):
    """Something a user can put right; the message names what came, what was expected, and the fix."""

    exit_code = 3


class UsageError(NormlabError, ValueError):
    """An argument is wrong: an unknown name, a path that does not exist, a contradiction (exit code 2)."""

    exit_code = 2


class DataError(NormlabError, ValueError):
    """The data cannot be used: unreadable, of the wrong shape, hostile, or out of disk (exit code 6)."""

    exit_code = 6
