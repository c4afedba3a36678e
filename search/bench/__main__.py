"""The process of one benchmark."""

import sys

from trimtab.search.bench.child import answer_parent

if __name__ == "__main__":
    sys.exit(answer_parent(*sys.argv[1:]))
