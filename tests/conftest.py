"""What holds for all tests."""

import signal

# A shell that starts us in the background has us ignore Ctrl-C, and whatever we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
