"""For all tests."""

import signal

# Started in the background (`nohup make test &`), this process ignores both, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
