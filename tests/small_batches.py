"""`predictions`, whose loads send batches of as many bytes as the variable SMALL_BYTES says.

So a part of few rows has as many batches as one of very many. The processes that a load spawns run this file, too, but
for its last lines.
"""

import os

import loader.batches

loader.batches.BATCH_BYTES = int(os.environ["SMALL_BYTES"])

if __name__ == "__main__":
    from predictions.cli.main import main

    main()
