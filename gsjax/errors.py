"""The one exception for what a user can mend."""


class UserError(Exception):
    """A mistake in a setting, a path or the data: one line that says what, where and what to do.

    `gsjax.main` prints it without a traceback and leaves with exit status 2.
    """
