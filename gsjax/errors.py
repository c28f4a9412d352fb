"""The one exception for errors that a user can fix."""


class UserError(Exception):
    """A mistake in a setting, a path or the data: one line that says what, where and what to do.

    `gsjax.main` prints it without a traceback and exits with status 2.
    """
