"""The one exception that means "the user can correct this": printed without a traceback, exit code 2."""


class UserError(Exception):
    """Bad input (config, XML, HDF5, checkpoint, command line).

    The message is one clear line (or a short list of lines) that names the file and the key or line at
    fault and suggests what to do. Entry points print it to stderr and exit with code 2.
    """

    exit_code = 2
    quiet = False  # whether another process of the launch reports it
