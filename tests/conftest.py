"""For all tests."""

import signal

from training.hardware import prepare_gpus

# Started in the background (`nohup make test &`), this process ignores both, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

prepare_gpus()  # before anything imports torch
