"""What a checkout has beside its commit, as one text that `git apply` takes."""

from diffusion_core.lineage.git import GitRefuses, git
from diffusion_core.lineage.provenance import DVC_LOCK

# Files with texts of their own in the run, without what addresses have of secrets.
RECORDED_APART = (DVC_LOCK, "params.yaml")

# A text of the tracking store; more than this is data and not code.
MOST_BYTES = 2**20
# Nothing that a user has configured changes what it looks like.
PLAIN = (
    *("--binary", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)


class Unrecordable(Exception):
    """The changes cannot be kept as a text; the message is a clause that says why."""


def checkout_changes() -> str:
    """Return the changes of tracked files, except dvc.lock and params.yaml, and the package's untracked files.

    It is empty for what `git_state` calls clean. The run has a text of each of the two apart.

    Raises:
        Unrecordable: they are too long or not UTF-8, or git refuses.
    """
    try:
        parts = [git("diff", *PLAIN, "HEAD", "--", ":/", *(f":(exclude){name}" for name in RECORDED_APART))]
        root = git("rev-parse", "--show-cdup").strip() or "."
        untracked = ("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", ":/diffusion_core")
        for name in filter(None, git(*untracked).split("\0")):
            # 1 says that the files differ.
            parts.append(git("-C", root, "diff", *PLAIN, "--no-index", "--", "/dev/null", name, codes=(0, 1)))
    except UnicodeDecodeError:
        raise Unrecordable("they hold text that is not UTF-8") from None
    except GitRefuses as error:
        raise Unrecordable(str(error)) from None
    changes = "".join(parts)
    if len(changes.encode()) > MOST_BYTES:
        raise Unrecordable(f"they have more than {MOST_BYTES // 2**20} MiB")
    return changes
