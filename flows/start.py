"""`python -m flows.start MODULE ARGUMENTS…` is `python -m MODULE ARGUMENTS…` with a quicker start: for others' servers."""

import runpy
import sys

from lineage.garbage import collect_seldom

if __name__ == "__main__":
    collect_seldom()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
