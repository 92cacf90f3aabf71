"""Write a fork's address everywhere: badges, setup cells, pyproject.toml, pages.

make address REPOSITORY=https://github.com/you/your-course
"""

import re
import subprocess
import sys
from pathlib import Path

ADDRESS = r"https://github\.com/([\w-]+/[\w.-]+)"


def rewritten(text: str, old: str, new: str) -> str:
    """The text with `owner/name` of one repository as that of another, and the folder that `git clone` makes."""
    text = text.replace(f"{old} && cd {old.partition('/')[2]}", f"{new} && cd {new.partition('/')[2]}")
    return re.sub(rf"(github\.com/|/github/){re.escape(old)}(?![\w-])", rf"\g<1>{new}", text)


def main(root: Path, address: str) -> None:
    """Rewrite every text file that git knows."""
    match = re.fullmatch(ADDRESS, address.removesuffix("/").removesuffix(".git"))
    if not match:
        sys.exit(f"REPOSITORY must be https://github.com/OWNER/NAME, which Colab opens; got {address!r}")
    old = re.search(rf'(?m)^Repository = "{ADDRESS}"$', (root / "pyproject.toml").read_text(encoding="utf-8"))[1]
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listing.split("\0")):
        path = root / name
        try:
            text = path.read_bytes().decode("utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # weights and pictures; what is removed but not yet committed
            continue
        if (new := rewritten(text, old, match[1])) != text:
            path.write_bytes(new.encode("utf-8"))
            print(name)


if __name__ == "__main__":
    main(Path.cwd(), *sys.argv[1:2] or [""])
