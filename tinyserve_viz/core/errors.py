"""Errors that a user can cause: one line each, with the exit code that the command line returns."""

from __future__ import annotations


class TinyserveError(Exception):
    """Base of all errors that the user can cause; the CLI prints the message as one line and exits with `exit_code`."""

    exit_code = 2


class TraceError(TinyserveError):
    """A trace file cannot be used. The message starts with file and line or path, then what was found and expected."""


class ConfigError(TinyserveError):
    """An option or a configuration value is out of range or contradicts another."""


class RecordingError(TinyserveError):
    """A recording cannot be opened, read or written."""


class KernelError(TinyserveError):
    """A kernel was called with arguments that do not fit its definition, or its name is unknown."""


class GpuUnavailable(TinyserveError):  # noqa: N818 - says a state of the machine, not a mistake
    """The GPU was asked for and cannot be used here; the message says what mends it."""

    exit_code = 3


class OutOfDeviceMemory(TinyserveError):  # noqa: N818 - says a state of the device
    """The device has no room; the message says what is needed and what is free."""


class DeviceLost(TinyserveError):  # noqa: N818 - says a state of the device
    """A launch failed or the device went away; nothing more can be run in this process."""

    exit_code = 3
