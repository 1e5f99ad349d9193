"""What holds for every test."""

import signal

# A shell's background job is born deaf to Ctrl-C, and so would be every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
