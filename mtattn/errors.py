"""The errors a user can cause or mend, each with its exit code (README, "The command line")."""


class MtattnError(Exception):
    """A failure that one short message explains: what, where, why, and the fix."""

    exit_code = 1


class ConfigError(MtattnError):
    """The command line or the configuration asks for something that cannot be."""

    exit_code = 2


class ModelError(MtattnError):
    """A run directory, checkpoint or released model is missing, damaged or of another kind."""

    exit_code = 3


class FileError(MtattnError):
    """A file cannot be read or written: missing, no permission, no space."""

    exit_code = 4


class RunInUseError(MtattnError):
    """Another process is training in this run directory."""

    exit_code = 5


class DivergedError(MtattnError):
    """Training produced non-finite numbers and could not recover."""

    exit_code = 6


class CorpusError(MtattnError):
    """The corpus is missing, empty, misaligned or not valid UTF-8."""

    exit_code = 7
