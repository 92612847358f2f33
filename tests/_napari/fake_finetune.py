"""A child that tells of progress as ``finetune --json-progress`` does, and learns nothing.

The model's name says what it does: ``better``, ``worse``, ``fail``, ``die``; ``slow FILE`` writes
its process id there and goes on until it is ended; ``last FILE`` waits for it before it says that
the model is written.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path


def tell(**line):
    print(json.dumps(line), flush=True)


def dice(before, after, n):
    return {"n": n, "before": before, "after": after, "patients": {}}


if __name__ == "__main__":
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    model = arguments["--model"]
    assert (Path(arguments["--data"]) / "corrections.json").is_file()
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(130)), daemon=True).start()
    print("a library that prints", flush=True)
    tell(stage="trial: the decoder", share=0.25, seconds_left=300.0 * float(arguments["--minutes"]))
    if model.startswith("slow "):
        Path(model.removeprefix("slow ")).write_text(str(os.getpid()))
        time.sleep(1000)
    if model == "fail":
        what = "The new model would do worse by 0.10 Dice, and was not kept."
        sys.exit(f"{what} Add cases or give it more time.")
    if model == "die":
        os._exit(3)
    if model.startswith("last "):
        tell(stage="writing the model", share=1.0, seconds_left=0.0)
        while not Path(model.removeprefix("last ")).exists():
            time.sleep(0.01)
    after = 0.74 if model == "better" else 0.60
    result = {"name": "improved-1", "model": "x", "notes": [], "held_out": dice(0.61, after, 2)}
    result |= {"guard": dice(0.9, 0.89, 4), "usual": dice(0.7, 0.7, 2), "share": 0.5}
    result["better"] = model == "better"
    tell(result=result)
