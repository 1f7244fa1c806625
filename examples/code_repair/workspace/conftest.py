"""Keep no bytecode: a patch may change a file faster than a .pyc's one-second clock can tell."""

import sys

sys.dont_write_bytecode = True
