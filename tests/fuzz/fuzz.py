"""Fuzzes the targets for so many seconds each, guided by coverage: `python tests/fuzz/fuzz.py SECONDS [TARGET…]`.

`.fuzz/` keeps what reached something new, and a file for each input that failed; the next run goes on from there. With
`--keep` the fewest inputs that reach all of it become `tests/data/fuzz`, which the suite replays. An input that failed
belongs there too, once what it found is mended.

Exit status: 0 nothing found, 1 something, 3 atheris is not installed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
FOUND = HERE.parents[1] / ".fuzz"
INPUT_SECONDS = 5  # none takes a hundredth of one; longer is a loop
sys.path.insert(1, str(HERE.parent))

from fuzz_targets import CORPUS, INPUT_LIMIT_BYTES, TARGETS, seeds  # noqa: E402  # what is beside and above this file


def main(arguments: list[str]) -> int:
    if find_spec("atheris") is None:
        sys.stderr.write("atheris is not installed here; `make fuzz` installs it\n")
        return 3
    seconds, *names = [word for word in arguments if word != "--keep"]
    failed = [name for name in names or TARGETS if not is_fuzzed(name, int(seconds))]
    for name in set(names or TARGETS) - set(failed) if "--keep" in arguments else ():
        keep(name)
    sys.stderr.write(f"found something in {', '.join(failed)}: see .fuzz/\n" if failed else "nothing found\n")
    return 1 if failed else 0


def is_fuzzed(name: str, seconds: int) -> bool:
    """False: something was found, and told on stderr."""
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    for data in seeds(name):
        (FOUND / name / hashlib.sha1(data).hexdigest()).write_bytes(data)
    sys.stderr.write(f"--- {name}, {seconds} s\n")
    limits = [f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS}", f"-artifact_prefix={FOUND}/{name}-"]
    return _libfuzzer(name, *limits, "-print_final_stats=1", str(FOUND / name), str(CORPUS / name))


def keep(name: str) -> None:
    """Make the target's corpus the fewest inputs that reach all that was reached."""
    with TemporaryDirectory() as fewest:
        if not _libfuzzer(name, "-merge=1", fewest, str(CORPUS / name), str(FOUND / name)):
            raise RuntimeError(f"libFuzzer cannot merge what it found in {name}")
        assert any(Path(fewest).iterdir()), "what was found reaches nothing"
        shutil.rmtree(CORPUS / name)
        shutil.copytree(fewest, CORPUS / name)


def _libfuzzer(name: str, *arguments: str) -> bool:
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "fuzz_one.py"), name, f"-max_len={INPUT_LIMIT_BYTES}", *arguments]
    return subprocess.run(command).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
