"""The programs for one who has registered a family and a task of tests/: a line each.

`registered.py train RUN.yaml ...` is launch/train.py, `registered.py plan ...` and so on the command `cavmae`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cavmae_ds.models import FAMILIES
from cavmae_ds.tasks import TASKS

FAMILIES["toy"] = "tests.models.toy"
TASKS["align"] = ("tests.tasks.align:AlignConfig", "tests.tasks.align:Alignment")


def main() -> None:
    """Run what the arguments ask for."""
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    if words[0] == "train":
        from cavmae_ds.train_cli import main, train_command

        sys.argv.remove("train")
        main(train_command)
    else:
        from cavmae_ds.cli import main as cavmae

        cavmae()


if __name__ == "__main__":
    main()
