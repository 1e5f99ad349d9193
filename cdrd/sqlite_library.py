"""Sets this process's SQLite library up for connections that one thread alone uses.

Otherwise SQLite locks a mutex for each value that is bound, and one more for each allocation, to
count it: a sixth of what a row takes. The rule that must stay true: no two threads ever use one
connection of this process at the same time. Source: sqlite.org, ``sqlite3_config`` and "Using
SQLite In Multi-Threaded Applications".
"""

import _sqlite3
import ctypes
from typing import Final

CONFIG_MULTITHREAD: Final = 2
CONFIG_MEMSTATUS: Final = 9


def set_up_for_one_thread() -> bool:
    """Do it, while no connection is open; tell whether the library has taken it.

    Where Python hides the library's functions it stays as it is, and only slower.
    """
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    try:
        configure = library.sqlite3_config
        library.sqlite3_shutdown()  # Python has initialised it, and then it takes no settings
    except AttributeError:
        return False
    refused = configure(CONFIG_MULTITHREAD) or configure(CONFIG_MEMSTATUS, 0)
    return not (library.sqlite3_initialize() or refused)
