"""The `rayner` command: hands a verb to its door."""

import gc
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

DOORS = {
    "plan": "what a run will need and cost, and where it fits, before it takes anything",
    "pretrain": "let an encoder read raw text first, or make one of it",
    "train": "fine-tune a model on an annotated corpus, score it, write a bundle",
    "prepare": "read, check and tokenize a corpus once, to train on it often",
    "evaluate": "score a bundle against gold, with an error report",
    "tune": "search for better settings of training, within a budget",
    "compress": "make a bundle smaller and faster, each step held to a bound on what it may cost",
    "scale": "measure what more workers bring, and which strategy to take",
    "predict": "label documents with a bundle",
    "serve": "answer requests with a bundle, with a page to try it",
    "submit": "run another verb as a job on a Ray cluster, and follow it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rayner VERB …` and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(
            "rayner: named entity recognition on Ray, from annotated corpus to labelled text\n\nusage: rayner VERB …\n"
        )
        print("\n".join(f"  {name:<10}{what}" for name, what in DOORS.items()))
        print("\n`rayner VERB --help` lists a verb's settings. For a first run: rayner train --config quickstart")
        return 0
    if verb == "--version":
        from pipelines.run_record import read_versions

        print(f"rayner {read_versions().get('rayner', 'from a checkout')}")
        return 0
    if verb not in DOORS:
        print(f"rayner: no verb `{verb}`\n  rule:   one of {', '.join(DOORS)}", file=sys.stderr)
        return 2
    door = _import_door(verb)
    code: int = door.main(arguments[1:])
    return code


def _import_door(verb: str) -> ModuleType:
    """What imports make stays to the end: to look for garbage in it takes a fifth of the time."""
    gc.disable()
    try:
        return importlib.import_module(f"pipelines.{verb}")
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
