"""Run `predictions` with loads whose batches have as many bytes as the variable SMALL_BYTES says.

A part of few rows then has as many batches as a part of very many. The processes that a load spawns import this file
too, without its last lines.
"""

import os

import loader.batches

loader.batches.BATCH_BYTES = int(os.environ["SMALL_BYTES"])

if __name__ == "__main__":
    from predictions.cli.main import main

    main()
